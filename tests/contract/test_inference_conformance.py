"""The inference contract, rule by rule: our service on the echo engine, and one that is not ours at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest
from martlet_core.artifacts.types import PublishedModel
from martlet_core.stores import Stores
from martlet_core.testing.conformance import INFERENCE_CHECKS, Check, InferenceTarget, check_name

_BASE = "conformance-base"
_ADAPTER = "ft:conformance-base:acme:birds:0a1b2c3d"
_TENANT = ("x-martlet-tenant", "acme")
#: Slow enough that a long answer outlasts what is done to it.
_TOKENS_PER_SECOND = 200

rules = pytest.mark.parametrize("check", INFERENCE_CHECKS, ids=check_name)


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
    check: Check,
    our_inference: str,
    open_channel: Callable[[str], grpc.aio.Channel],
    try_check: Callable[..., object],
) -> None:
    target = InferenceTarget(
        open_channel(our_inference), metadata=(_TENANT,), adapter=_ADAPTER, unload_whole_model=True
    )
    await try_check(check, target)  # type: ignore[misc]


@rules
async def test_foreign_service(
    check: Check,
    foreign_inference: str,
    open_channel: Callable[[str], grpc.aio.Channel],
    try_check: Callable[..., object],
) -> None:
    await try_check(
        check, InferenceTarget(open_channel(foreign_inference), adapter="parrot-rude", unload_whole_model=True)
    )  # type: ignore[misc]
