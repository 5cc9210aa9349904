"""Evaluation jobs through the real evaluator, from ``Create`` to a report, against an echo replica behind a real gateway."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import openai
import pytest
from martlet.common.v1 import job_pb2
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import MartletError
from martlet_core.rpc.client import call_metadata, error_from_rpc
from martlet_core.testing.conformance import EVALUATOR_RULES, EvaluatorTarget, assert_rule

Evaluator = Any  # the fixture's class; conftest modules can't be imported
BASE = "echo-base"
ROWS = [
    {"prompt": word, "completion": word, "kind": kind}
    for word, kind in (("oak", "tree"), ("elm", "tree"), ("rose", "flower"))
]


def spec(dataset: str, **changes: Any) -> dict[str, Any]:
    """The echo engine's answer of one token is the question's first word."""
    return {
        "targets": [{"name": "base", "model": BASE}],
        "dataset": dataset,
        "suites": [{"suite": "exact_match"}],
        "sampling": {"max_tokens": 1},
        **changes,
    }


def refusal(call: Callable[[], Any]) -> MartletError:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_from_rpc(caught.value)


def test_a_job_ends_with_a_report_and_records(evaluator: Evaluator) -> None:
    made = evaluator.create(
        spec(
            evaluator.upload(ROWS * 4),
            targets=[{"name": "one", "model": BASE}, {"name": "two", "model": BASE}],
            suites=[
                {"suite": "exact_match"},
                {"suite": "latency", "options": {"requests": 4, "concurrency": [2], "max_tokens": 3}},
            ],
            category_field="kind",
            concurrency=4,
        )
    )
    events = evaluator.watch(made.name)
    job = evaluator.get(made.name)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, f"{job.error}{evaluator.logs()}"
    assert events[-1].state_change.to_state == job_pb2.JOB_STATE_SUCCEEDED
    result = job.result
    assert (result.rows_read, result.rows_used, result.rows_failed) == (12, 12, 0)
    assert [target.name for target in result.targets] == ["one", "two"]
    assert result.targets[0].metrics["exact_match.accuracy"].value == 1.0
    assert result.targets[0].metrics["latency.ttft_ms.c2"].HasField("low")
    (same,) = [found for found in result.comparisons if found.metric == "exact_match.accuracy"]
    assert (same.target, same.baseline, same.difference, same.p_value) == ("two", "one", 0.0, 1.0)
    records = (evaluator.download(result.records_artifact) / "records.jsonl").read_text().split("\n")
    assert len([line for line in records if line]) == 2 * (12 + 4)
    report = evaluator.download(result.report_artifact)
    assert json.loads((report / "report.json").read_text())["categories"][0]["category"] == "flower"
    assert "<script" not in (report / "report.html").read_text()
    assert (
        evaluator.stores.artifacts.get(result.report_artifact.removeprefix("artifacts/"), tenant="acme").kind
        == "report"
    )


def test_cancel_in_mid_job(evaluator: Evaluator) -> None:
    made = evaluator.create(spec(evaluator.upload(ROWS * 200), concurrency=1))
    evaluator.wait_until(lambda: evaluator.step(made.name) >= 5, "the first answers")
    evaluator.cancel(made.name)
    events = evaluator.watch(made.name)
    assert events[-1].state_change.to_state == job_pb2.JOB_STATE_CANCELLED
    job = evaluator.get(made.name)
    assert not job.result.report_artifact
    evaluator.wait_until(lambda: not evaluator.children(evaluator.worker), "the end of the job's process")


def test_a_killed_worker_costs_no_answers(evaluator: Evaluator) -> None:
    """The worker and its job die at once; another goes on from the last checkpoint. Earns its fifteen seconds: it is what
    a job of hours stands on."""
    rows, concurrency = [{"prompt": f"w{i}", "completion": f"w{i}"} for i in range(240)], 4
    before = evaluator.asked()
    made = evaluator.create(spec(evaluator.upload(rows), concurrency=concurrency))
    evaluator.wait_until(lambda: len(checkpoints(evaluator, made.name)) >= 2, "two checkpoints")
    for pid in (*evaluator.children(evaluator.worker), evaluator.worker.pid):
        os.kill(pid, signal.SIGKILL)
    evaluator.worker.wait()
    kept = max(checkpoints(evaluator, made.name))
    asked_by_the_first = evaluator.asked() - before
    assert 0 < kept < len(rows)
    evaluator.worker = evaluator.start_worker()
    events = evaluator.watch(made.name)
    job = evaluator.get(made.name)
    assert (job.state, job.attempt) == (job_pb2.JOB_STATE_SUCCEEDED, 2), f"{job.error}{evaluator.logs()}"
    assert any(f"going on with {kept} answers" in event.message for event in events)
    assert job.result.targets[0].metrics["exact_match.accuracy"].value == 1.0
    asked_by_the_second = evaluator.asked() - before - asked_by_the_first
    # Requests that were on their way when the first worker died end after it was counted.
    assert len(rows) - kept <= asked_by_the_second <= len(rows) - kept + concurrency


def checkpoints(evaluator: Evaluator, name: str) -> list[int]:
    """Answers in each checkpoint that the job has handed over."""
    evaluator.step(name)  # fails where the job has ended
    job = evaluator.stores.jobs.get(name.removeprefix("evaluationJobs/"))
    return [checkpoint["step"] for checkpoint in job.checkpoints]


def test_rows_that_get_no_answer_fail_the_job_with_their_reason(evaluator: Evaluator) -> None:
    rows = [{"prompt": "oak", "completion": "oak"}]
    made = evaluator.create(spec(evaluator.upload(rows), suites=[{"suite": "perplexity"}]))
    evaluator.watch(made.name)
    job = evaluator.get(made.name)
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert "no log-probabilities" in job.error.message


async def test_an_evaluation_meets_the_contract(evaluator: Evaluator) -> None:
    """The one rule that needs a worker; the others are tried in tests/contract."""
    (rule,) = [rule for rule in EVALUATOR_RULES if rule.name == "job_succeeds"]
    async with grpc.aio.insecure_channel(evaluator.address) as channel:
        metadata = tuple(call_metadata(tenant="acme", internal_token="internal-token"))
        target = EvaluatorTarget(
            channel, metadata=metadata, model=BASE, dataset=evaluator.upload(ROWS), run_seconds=60.0
        )
        await assert_rule(rule, target)


def test_what_cannot_work_is_refused_before_it_is_queued(evaluator: Evaluator) -> None:
    dataset = evaluator.upload(ROWS)

    def refused(**changes: Any) -> MartletError:
        return refusal(lambda: evaluator.create(spec(dataset, **changes)))

    error = refused(targets=[{"model": "echo-bse"}])
    assert (error.code, error.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert "spec.targets.0.model" in error.message
    evaluator.stores.models.publish(PublishedModel("ft:theirs", "adapter", "umbrella", "a1", BASE, lora_rank=4))
    assert refused(targets=[{"model": "ft:theirs"}]).code == "NOT_FOUND"
    error = refused(suites=[{"suite": "judge", "options": {"model": "no-judge"}}])
    assert (error.code, "spec.suites.0.options.model" in error.message) == ("NOT_FOUND", True)
    external = {"name": "x", "model": "m", "engine": "TARGET_ENGINE_EXTERNAL", "base_url": "http://127.0.0.1:1/v1"}
    assert refused(targets=[external]).reason == "BASE_URL_NOT_ALLOWED"
    inside = {"model": BASE, "engine": "TARGET_ENGINE_TRANSFORMERS"}
    assert refused(targets=[inside]).reason == "IN_PROCESS_TARGETS_OFF"
    assert "did you mean kind" in refused(category_field="kinds").message
    theirs = evaluator.upload(ROWS, tenant="umbrella")
    assert refusal(lambda: evaluator.create(spec(theirs))).code == "NOT_FOUND"
    bad = evaluator.upload([*ROWS, {"prompt": "oak"}])
    error = refusal(lambda: evaluator.create(spec(bad)))
    assert (error.code, "line 4" in error.message) == ("INVALID_ARGUMENT", True)
    task = {"suite": "lm_eval", "options": {"tasks": [{"task": "gsm8kk"}]}}
    assert "did you mean gsm8k" in refused(suites=[task]).message
    task = {"suite": "lm_eval", "options": {"tasks": [{"task": "gsm8k"}]}}
    error = refusal(lambda: evaluator.create({**spec(""), "suites": [task]}))
    assert (error.reason, error.violations[0].field) == ("NO_BENCHMARK_DATA", "spec.suites.0.options.tasks.0.dataset")


EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
CLOSE = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "fuzzy_match",
    "pass_threshold": 0.8,
}


def run_of(evaluator: Evaluator, client: openai.OpenAI, eval_id: str, source: Any) -> Any:
    """A run of an eval, once it is over."""
    run: Any = client.evals.runs.create(eval_id, data_source=source)

    def is_over() -> bool:
        nonlocal run
        run = client.evals.runs.retrieve(run.id, eval_id=eval_id)
        return run.status in ("completed", "failed", "canceled")

    evaluator.wait_until(is_over, "the run")
    assert run.status == "completed", f"{run.error}{evaluator.logs()}"
    return run


def test_the_stock_client_evaluates(evaluator: Evaluator) -> None:
    """An eval, a run that asks the echo replica by a template, one that asks by the rows' own messages, and one whose rows hold
    the answers."""
    client = evaluator.openai()
    properties = {"question": {"type": "string"}, "answer": {"type": "string"}, "turns": {"type": "array"}}
    config: Any = {
        "type": "custom",
        "item_schema": {"type": "object", "properties": properties, "required": ["answer"]},
        "include_sample_schema": True,
    }
    criteria: Any = [EXACT, CLOSE]
    made = client.evals.create(name="trees", data_source_config=config, testing_criteria=criteria)
    items = [
        {"question": "oak tree", "answer": "oak tree"},
        {"question": "elm tree", "answer": "elm trees"},
        {"question": "rose", "answer": "oak tree"},
        {"answer": "nobody asks"},
    ]
    template = {
        "type": "template",
        "template": [{"role": "developer", "content": "Echo."}, {"role": "user", "content": "{{item.question}}"}],
    }
    asking = {"type": "completions", "model": BASE, "sampling_params": {"max_completion_tokens": 2, "temperature": 0}}

    def content(rows: list[Any]) -> dict[str, Any]:
        return {"source": {"type": "file_content", "content": rows}}

    run = run_of(
        evaluator, client, made.id, {**asking, **content([{"item": i} for i in items]), "input_messages": template}
    )
    counts = run.result_counts
    assert (counts.total, counts.passed, counts.failed, counts.errored) == (4, 1, 2, 1)
    by_name = {found.testing_criteria: (found.passed, found.failed) for found in run.per_testing_criteria_results}
    assert by_name == {"exact": (1, 2), "close": (2, 1)}
    (usage,) = run.per_model_usage
    assert (usage.model_name, usage.invocation_count, usage.prompt_tokens, usage.completion_tokens) == (BASE, 3, 8, 6)
    found = list(client.evals.runs.output_items.list(run.id, eval_id=made.id, order="asc"))
    assert [item.status for item in found] == ["pass", "fail", "fail", "error"]
    assert [item.datasource_item for item in found] == items
    assert (found[1].sample.output[0].content, found[1].sample.input[0].role) == ("elm tree", "system")
    assert [result.score for result in found[0].results] == [1.0, 1.0]
    assert "question" in found[3].sample.error.message
    report = client.get(run.report_url, cast_to=str)
    assert "graders" in report

    turns = {"turns": [{"role": "user", "content": "{{item.answer}} x"}], "answer": "{{item.answer}} x"}
    reference = {"type": "item_reference", "item_reference": "item.turns"}
    run = run_of(evaluator, client, made.id, {**asking, **content([{"item": turns}]), "input_messages": reference})
    assert run.result_counts.passed == 1

    asked = evaluator.asked()
    rows = [{"item": {"answer": "a"}, "sample": {"output_text": text}} for text in ("a", "b")]
    run = run_of(evaluator, client, made.id, {"type": "jsonl", **content(rows)})
    assert (run.result_counts.passed, run.result_counts.failed, run.per_model_usage) == (1, 1, [])
    (item,) = client.evals.runs.output_items.list(run.id, eval_id=made.id, status="fail")
    assert item.sample.output[0].content == "b"
    assert evaluator.asked() == asked


def test_a_run_without_any_answer_is_completed(evaluator: Evaluator) -> None:
    client = evaluator.openai()
    schema = {"type": "object", "properties": {"question": {"type": "string"}, "answer": {"type": "string"}}}
    config: Any = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
    criteria: Any = [EXACT]
    made = client.evals.create(data_source_config=config, testing_criteria=criteria)
    template = {"type": "template", "template": [{"role": "user", "content": "{{item.question}}"}]}
    rows = {"type": "file_content", "content": [{"item": {"answer": "a"}}] * 2}
    source = {"type": "completions", "model": BASE, "source": rows, "input_messages": template}
    run = run_of(evaluator, client, made.id, source)
    counts = run.result_counts
    assert (counts.total, counts.passed, counts.failed, counts.errored) == (2, 0, 0, 2)
    assert run.per_testing_criteria_results == []
