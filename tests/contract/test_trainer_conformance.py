"""The trainer contract, rule by rule, on our service. No worker runs: the rules are about jobs, not about training."""

from __future__ import annotations

from collections.abc import Callable

import grpc.aio
import pytest
from martlet_core.testing.conformance import (
    MERGE_CHECKS,
    TRAINER_CHECKS,
    Check,
    Outcome,
    TrainerTarget,
    assert_check,
    check_name,
)
from martlet_core.testing.conformance.checks import run_check

#: What can't be tried here, for want of a worker or of reflection; every other rule must be.
_MAY_BE_SKIPPED = ("reflection_lists_the_service", "training_succeeds", "merge_succeeds")


@pytest.mark.parametrize("check", TRAINER_CHECKS, ids=check_name)
async def test_our_service(
    check: Check,
    our_trainer: str,
    training_dataset: str,
    adapter: str,
    open_channel: Callable[[str], grpc.aio.Channel],
    try_check: Callable[..., object],
) -> None:
    target = TrainerTarget(
        open_channel(our_trainer),
        metadata=(("x-martlet-tenant", "acme"),),
        training_dataset=training_dataset,
        other_tenant="umbrella",
        adapter=adapter,
    )
    run = try_check if check_name(check) in _MAY_BE_SKIPPED else assert_check
    await run(check, target)  # type: ignore[misc]


async def test_trainer_may_leave_merging_out(open_channel: Callable[[str], grpc.aio.Channel]) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    target = TrainerTarget(open_channel(f"127.0.0.1:{port}"), adapter="artifacts/any")
    results = [await run_check(check, target) for check in MERGE_CHECKS]
    await server.stop(0)
    assert {result.outcome for result in results} == {Outcome.SKIPPED}
    assert {result.detail for result in results} == {"MergeService is not offered here"}


async def test_rules_that_need_no_adapter_are_tried_without_one(
    our_trainer: str, open_channel: Callable[[str], grpc.aio.Channel]
) -> None:
    target = TrainerTarget(open_channel(our_trainer), metadata=(("x-martlet-tenant", "acme"),))
    outcomes = {check_name(check): (await run_check(check, target)).outcome for check in MERGE_CHECKS}
    tried = {name for name, outcome in outcomes.items() if outcome is not Outcome.SKIPPED}
    assert tried == {
        "merging_is_healthy",
        "unknown_adapter_is_not_found",
        "unknown_merge_is_not_found",
        "malformed_merge_names_are_refused",
    }
    assert {outcomes[name] for name in tried} == {Outcome.PASSED}
