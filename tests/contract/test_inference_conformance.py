"""The inference contract, rule by rule: our service on two of its engines, and one that is not ours at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest
from martlet_cli.__main__ import main
from martlet_core.artifacts.types import PublishedModel
from martlet_core.stores import Stores
from martlet_core.testing.conformance import INFERENCE_RULES, InferenceTarget, Rule, rule_name

_BASE = "conformance-base"
_ADAPTER = "ft:conformance-base:acme:birds:0a1b2c3d"
_TALKING = "ft:talking:acme::0a1b2c3d"
_TENANT = ("x-martlet-tenant", "acme")
#: Slow enough that a long answer outlasts what is done to it.
_TOKENS_PER_SECOND = 200

rules = pytest.mark.parametrize("rule", INFERENCE_RULES, ids=rule_name)


@pytest.fixture(scope="session")
def our_inference(stores: Stores, start_service: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Our service; its store knows a base model and an adapter of the tenant ``acme``."""
    directory = tmp_path_factory.mktemp("adapter")
    Path(directory / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    artifact = stores.artifacts.put_directory(directory, kind="adapter", tenant="acme")
    stores.models.publish(PublishedModel(_BASE, "base"))
    stores.models.publish(
        PublishedModel(_ADAPTER, "adapter", tenant="acme", artifact_id=artifact.id, base_model=_BASE, lora_rank=8)
    )
    return start_service("inference", engine="echo", model=_BASE, echo_tokens_per_second=_TOKENS_PER_SECOND)


@rules
async def test_our_service(
    rule: Rule,
    our_inference: str,
    open_channel: Callable[[str], grpc.aio.Channel],
    try_rule_here: Callable[..., object],
) -> None:
    target = InferenceTarget(
        open_channel(our_inference), metadata=(_TENANT,), adapter=_ADAPTER, unload_whole_model=True
    )
    await try_rule_here(rule, target)  # type: ignore[misc]


@pytest.fixture(scope="session")
def our_inference_with_transformers(stores: Stores, start_service: Callable[..., str], talking_llama: Path) -> str:
    """Our service on transformers, with a model that computes."""
    artifact = stores.artifacts.put_directory(talking_llama / "adapter", kind="adapter", tenant="acme")
    stores.models.publish(
        PublishedModel(_TALKING, "adapter", tenant="acme", artifact_id=artifact.id, base_model="talking", lora_rank=8)
    )
    return start_service(
        "inference",
        environment_name="inference-transformers",
        ready_seconds=240.0,
        engine="transformers",
        model="talking",
        model_dir=talking_llama / "model",
        engine_threads=1,
    )


@rules
@pytest.mark.slow
@pytest.mark.timeout(290)
async def test_our_service_with_transformers(
    rule: Rule,
    our_inference_with_transformers: str,
    open_channel: Callable[[str], grpc.aio.Channel],
    try_rule_here: Callable[..., object],
) -> None:
    """Slow for the import of torch: an engine that was written here keeps each rule only if it was tried."""
    channel = open_channel(our_inference_with_transformers)
    target = InferenceTarget(
        channel, metadata=(_TENANT,), timeout_seconds=120.0, adapter=_TALKING, unload_whole_model=True
    )
    await try_rule_here(rule, target)  # type: ignore[misc]


@rules
async def test_foreign_service(
    rule: Rule,
    foreign_inference: str,
    open_channel: Callable[[str], grpc.aio.Channel],
    try_rule_here: Callable[..., object],
) -> None:
    await try_rule_here(
        rule, InferenceTarget(open_channel(foreign_inference), adapter="parrot-rude", unload_whole_model=True)
    )  # type: ignore[misc]


def test_command_says_how_the_foreign_service_fares(foreign_inference: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("conformance", "inference", "--address", foreign_inference, "--adapter", "parrot-rude", "--json")
    assert main([*asked, "--unload-whole-model", "--partial"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["contract"], found["address"], found["conforms"]) == ("inference", foreign_inference, True)
    assert [row["rule"] for row in found["rules"]] == [rule.name for rule in INFERENCE_RULES]
    fared = {row["rule"]: row["result"] for row in found["rules"]}
    untried = {name for name, result in fared.items() if result == "untried"}
    assert untried == {"adapters_of_other_tenants_are_not_found"}, "it has no tenants, and none was named"
    assert set(fared.values()) <= {"passed", "skipped", "untried"}


def test_command_fails_where_a_rule_is_broken_or_untried(
    foreign_inference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["conformance", "inference", "--address", foreign_inference]) == 1
    assert "name an adapter that a request may load: --adapter" in capsys.readouterr().out
    strangers = ("--model", "no-such-parrot", "--adapter", "nobody", "--partial", "--timeout-seconds", "5")
    assert main(["conformance", "inference", "--address", foreign_inference, *strangers]) == 1
    out = capsys.readouterr().out
    assert "chat_answers_whole\terror\tA chat completion that isn't streamed is one message" in out
    assert "NOT_FOUND" in out
