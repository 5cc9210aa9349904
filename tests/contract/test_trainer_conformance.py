"""The trainer contract, rule by rule, on our service. No worker runs: the rules are about jobs, not about training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest
from martlet_core.stores import Stores
from martlet_core.testing.conformance import TRAINER_CHECKS, Check, TrainerTarget, check_name


@pytest.fixture(scope="session")
def training_dataset(stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small data set of the tenant ``acme``, as a resource name."""
    directory = tmp_path_factory.mktemp("dataset")
    rows = [
        {"messages": [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": str(n + 1)}]}
        for n in range(20)
    ]
    Path(directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    artifact = stores.artifacts.put_directory(
        directory, kind="dataset", tenant="acme", metadata={"format": "messages", "rows": len(rows)}
    )
    return f"artifacts/{artifact.id}"


@pytest.fixture(scope="session")
def our_trainer(start_service: Callable[..., str]) -> str:
    """Address of our service."""
    return start_service("trainer", queue="contract-trainer")


@pytest.mark.parametrize("check", TRAINER_CHECKS, ids=check_name)
async def test_our_service(
    check: Check,
    our_trainer: str,
    training_dataset: str,
    open_channel: Callable[[str], grpc.aio.Channel],
    try_check: Callable[..., object],
) -> None:
    target = TrainerTarget(
        open_channel(our_trainer),
        metadata=(("x-martlet-tenant", "acme"),),
        training_dataset=training_dataset,
        other_tenant="umbrella",
    )
    await try_check(check, target)  # type: ignore[misc]
