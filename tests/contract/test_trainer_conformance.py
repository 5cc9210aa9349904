"""The trainer contract, rule by rule, on our service. No worker runs: the rules are about jobs, not about training."""

from __future__ import annotations

from collections.abc import Callable

import grpc.aio
import pytest
from martlet_core.testing.conformance import (
    MERGE_RULES,
    TRAINER_RULES,
    Outcome,
    Rule,
    TrainerTarget,
    assert_rule,
    rule_name,
)
from martlet_core.testing.conformance.rules import try_rule

#: What can't be tried here, for want of a worker or of reflection; every other rule must be.
_MAY_BE_SKIPPED = (
    "reflection_lists_the_service",
    "merge_reflection_lists_the_service",
    "job_succeeds",
    "merge_job_succeeds",
)


@pytest.mark.parametrize("rule", TRAINER_RULES, ids=rule_name)
async def test_our_service(
    rule: Rule,
    our_trainer: str,
    training_dataset: str,
    adapter: str,
    open_channel: Callable[[str], grpc.aio.Channel],
    try_rule_here: Callable[..., object],
) -> None:
    target = TrainerTarget(
        open_channel(our_trainer),
        metadata=(("x-martlet-tenant", "acme"),),
        dataset=training_dataset,
        other_tenant="umbrella",
        adapter=adapter,
    )
    run = try_rule_here if rule.name in _MAY_BE_SKIPPED else assert_rule
    await run(rule, target)  # type: ignore[misc]


async def test_trainer_may_leave_merging_out(open_channel: Callable[[str], grpc.aio.Channel]) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    target = TrainerTarget(open_channel(f"127.0.0.1:{port}"), adapter="artifacts/any")
    results = [await try_rule(rule, target) for rule in MERGE_RULES]
    await server.stop(0)
    assert {result.outcome for result in results} == {Outcome.SKIPPED}
    assert {result.found for result in results} == {"MergeService is not offered here"}


async def test_rules_that_need_no_adapter_are_tried_without_one(
    our_trainer: str, open_channel: Callable[[str], grpc.aio.Channel]
) -> None:
    target = TrainerTarget(open_channel(our_trainer), metadata=(("x-martlet-tenant", "acme"),))
    outcomes = {rule.name: (await try_rule(rule, target)).outcome for rule in MERGE_RULES}
    tried = {name for name, outcome in outcomes.items() if outcome is not Outcome.UNTRIED}
    assert tried == {
        "merge_health_is_serving",
        "merge_reflection_lists_the_service",
        "merge_unknown_inputs_are_not_found",
        "merge_unknown_job_is_not_found",
        "merge_malformed_names_are_refused",
    }
    assert {outcomes[name] for name in tried} == {Outcome.PASSED}
