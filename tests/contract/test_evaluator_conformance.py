"""The evaluator contract, rule by rule, on our service. No worker runs: the rules are about jobs, not about measuring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest
from martlet_core.local_servers import free_port
from martlet_core.testing.conformance import EVALUATOR_CHECKS, Check, EvaluatorTarget, assert_check, check_name

#: What can't be tried here, for want of a worker or of reflection; every other rule must be.
_MAY_BE_SKIPPED = ("reflection_lists_the_service", "evaluation_succeeds")
_TOKEN = "contract-token"


@pytest.fixture(scope="session")
def our_evaluator(start_service: Callable[..., str], our_trainer: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of our evaluator, with a gateway that knows the trainer's base models. No worker and no replica runs."""
    port = free_port()
    uploads: Path = tmp_path_factory.mktemp("uploads")
    shared = {"internal_token": _TOKEN}
    start_service("gateway", http_port=port, trainer_address=our_trainer, upload_dir=uploads, **shared)
    return start_service("evaluator", queue="contract-evaluator", gateway_url=f"http://127.0.0.1:{port}/v1", **shared)


@pytest.mark.parametrize("check", EVALUATOR_CHECKS, ids=check_name)
async def test_our_service(
    check: Check,
    our_evaluator: str,
    training_dataset: str,
    open_channel: Callable[[str], grpc.aio.Channel],
    try_check: Callable[..., object],
) -> None:
    target = EvaluatorTarget(
        open_channel(our_evaluator),
        metadata=(("x-martlet-tenant", "acme"), ("x-martlet-internal-token", _TOKEN)),
        dataset=training_dataset,
        other_tenant="umbrella",
    )
    run = try_check if check_name(check) in _MAY_BE_SKIPPED else assert_check
    await run(check, target)  # type: ignore[misc]
