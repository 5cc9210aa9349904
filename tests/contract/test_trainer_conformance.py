"""The trainer contract, rule by rule, on our service. No worker runs: the rules are about jobs, not about training."""

from __future__ import annotations

from collections.abc import Callable

import grpc.aio
import pytest
from martlet_core.testing.conformance import TRAINER_CHECKS, Check, TrainerTarget, check_name


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
