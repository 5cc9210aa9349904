"""The evaluator contract, rule by rule, on our service, and on one written from the protos alone (examples/swap).

No worker runs: the rules are about jobs, not about measuring.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc.aio
import pytest
from martlet_core.testing.conformance import EVALUATOR_RULES, EvaluatorTarget, Rule, assert_rule, rule_name

#: What can't be tried here, for want of a worker or of reflection; every other rule must be.
_MAY_BE_SKIPPED = ("reflection_lists_the_service", "job_succeeds")


rules = pytest.mark.parametrize("rule", EVALUATOR_RULES, ids=rule_name)


@rules
@pytest.mark.parametrize("service", ["our_evaluator", "foreign_evaluator"])
async def test_service(
    rule: Rule,
    service: str,
    training_dataset: str,
    internal_token: str,
    open_channel: Callable[[str], grpc.aio.Channel],
    try_rule_here: Callable[..., object],
    request: pytest.FixtureRequest,
) -> None:
    target = EvaluatorTarget(
        open_channel(request.getfixturevalue(service)),
        metadata=(("x-martlet-tenant", "acme"), ("x-martlet-internal-token", internal_token)),
        dataset=training_dataset,
        other_tenant="umbrella",
    )
    run = try_rule_here if rule.name in _MAY_BE_SKIPPED else assert_rule
    await run(rule, target)  # type: ignore[misc]
