"""What may be asked for, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest
from martlet_core.addresses import is_allowed
from martlet_core.errors import InvalidArgument
from martlet_evaluator.config import parse_evaluation_config
from martlet_evaluator.suite_options import SUITE_OPTIONS, LatencyOptions, parse_suite_options
from martlet_evaluator.suites import SUITES


def spec(**changes: Any) -> dict[str, Any]:
    return {"targets": [{"model": "base"}], "dataset": "artifacts/a", "suites": [{"suite": "exact_match"}], **changes}


def graders(**options: Any) -> dict[str, Any]:
    check = {"type": "string_check", "name": "c", "input": "{{item.a}}", "reference": "b", "operation": "eq"}
    return {"suites": [{"suite": "graders", "options": {"testing_criteria": [check], **options}}]}


def test_defaults() -> None:
    config = parse_evaluation_config(spec())
    assert config.targets[0].name == "base"
    assert config.targets[0].engine == "gateway"
    assert config.baseline_name == "base"
    assert (config.concurrency, config.max_failed_rows, config.seed, config.sampling.max_tokens) == (8, 0, 42, 256)
    assert (config.resources.priority, config.resources.max_attempts) == (5, 5)


def test_a_proto_as_json_is_read() -> None:
    config = parse_evaluation_config(
        spec(
            targets=[
                {"name": "", "model": "m", "engine": "TARGET_ENGINE_TRANSFORMERS", "base_url": "", "api_key_env": ""}
            ],
            suites=[{"suite": "latency", "options": {"requests": 8.0, "concurrency": [1.0, 2.0]}}],
            baseline="",
        )
    )
    assert (config.targets[0].name, config.targets[0].engine) == ("m", "transformers")
    options = parse_suite_options(config.suites[0])
    assert isinstance(options, LatencyOptions)
    assert (options.requests, options.concurrency) == (8, (1, 2))


EXTERNAL = {"name": "x", "model": "m", "engine": "external"}


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"targets": []}, "targets", "1 to 16"),
        ({"targets": [{"name": "a"}]}, "targets.0.model", "required"),
        ({"targets": [{"model": "a"}, {"model": "a"}]}, "targets.1.name", "names must differ"),
        ({"targets": [{"model": "a b"}]}, "targets.0.model", "artifacts/<id>"),
        ({"targets": [{"model": "a", "engine": "vllm"}]}, "targets.0.engine", "gateway"),
        ({"targets": [{"model": "a", "base_url": "http://x"}]}, "targets.0.base_url", "for external targets"),
        ({"targets": [EXTERNAL]}, "targets.0.base_url", "required"),
        ({"targets": [{**EXTERNAL, "base_url": "file:///etc/passwd"}]}, "targets.0.base_url", "http(s)://"),
        ({"targets": [{**EXTERNAL, "base_url": "http://u:p@x/v1"}]}, "targets.0.base_url", "nothing more"),
        (
            {"targets": [{**EXTERNAL, "base_url": "http://x/v1", "api_key_env": "MARTLET_S3_SECRET_KEY"}]},
            "targets.0.api_key_env",
            "begin with MARTLET_EVALUATION_KEY_",
        ),
        ({"baseline": "bse"}, "baseline", "did you mean base?"),
        ({"dataset": None}, "dataset", "is required"),
        ({"dataset": "rows.jsonl"}, "dataset", "artifacts/<id>"),
        ({"suites": [{"suite": "exct_match"}]}, "suites.0.suite", "did you mean exact_match?"),
        (
            {"suites": [{"suite": "exact_match", "options": {"ignore_cse": True}}]},
            "suites.0.options.ignore_cse",
            "ignore_case",
        ),
        (
            {"suites": [{"suite": "exact_match", "options": {"extract": "("}}]},
            "suites.0.options.extract",
            "not a regular",
        ),
        ({"suites": [{"suite": "latency", "options": {"requests": 1.5}}]}, "suites.0.options.requests", "whole number"),
        ({"suites": [{"suite": "judge"}]}, "suites.0.options.model", "required"),
        (
            {"suites": [{"suite": "judge", "options": {"model": "j", "mode": "pairwise"}}]},
            "suites.0.options.mode",
            "at least two targets",
        ),
        (
            {"suites": [{"suite": "graders", "options": {"testing_criteria": [{"type": "python", "name": "p"}]}}]},
            "suites.0.options.testing_criteria.0.type",
            "no sandbox",
        ),
        (
            graders(input_messages=[{"role": "user"}]),
            "suites.0.options.input_messages.0.content",
            "must be text",
        ),
        (
            graders(input_messages=[{"role": "user", "content": "{{sample.output_text}}"}]),
            "suites.0.options.input_messages.0.content",
            "is about answers",
        ),
        (graders(item_reference="messages"), "suites.0.options.item_reference", "item.messages"),
        (
            graders(item_reference="item.a", input_messages=[{"role": "user", "content": "x"}]),
            "suites.0.options.item_reference",
            "one prompt",
        ),
        ({"suites": [{"suite": "lm_eval", "options": {"tasks": []}}]}, "suites.0.options.tasks", "at least 1"),
        ({"concurrency": 513}, "concurrency", "<= 512"),
        ({"max_failed_rows": -1}, "max_failed_rows", ">= 0"),
        ({"sampling": {"temperature": 3}}, "sampling.temperature", "<= 2"),
        ({"sampl": {}}, "sampl", "did you mean sampling?"),
    ],
)
def test_a_wrong_request_is_refused_with_its_field(changes: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_evaluation_config(spec(**changes))
    assert [v.field for v in caught.value.violations] == [f"spec.{field}"]
    assert words in caught.value.violations[0].description


def test_suites_with_rows_of_their_own_need_no_dataset() -> None:
    config = parse_evaluation_config(spec(dataset=None, suites=[{"suite": "latency"}]))
    assert not config.needs_dataset


def test_every_suite_has_options_a_class_and_a_description() -> None:
    assert list(SUITES) == list(SUITE_OPTIONS)
    for options in SUITE_OPTIONS.values():
        assert options.__doc__
        assert options.metrics


def test_an_allowed_address_is_that_address_and_no_other() -> None:
    allowed = ("https://api.example/v1/",)
    assert is_allowed("https://api.example/v1", allowed)
    for other in (
        "https://api.example",
        "https://api.example/v1/../x",
        "http://api.example/v1",
        "https://api.example.evil/v1",
    ):
        assert not is_allowed(other, allowed)
