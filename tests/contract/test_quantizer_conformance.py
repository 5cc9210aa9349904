"""The quantizer contract, rule by rule, on our service. No worker runs: the rules are about jobs, not about quantizing."""

from __future__ import annotations

from collections.abc import Callable

import grpc.aio
import pytest
from martlet_core.testing.conformance import QUANTIZER_RULES, QuantizerTarget, Rule, assert_rule, rule_name

#: What can't be tried here, for want of a worker or of reflection; every other rule must be.
_MAY_BE_SKIPPED = ("reflection_lists_the_service", "job_succeeds")


@pytest.mark.parametrize("rule", QUANTIZER_RULES, ids=rule_name)
async def test_our_service(
    rule: Rule,
    our_quantizer: str,
    training_dataset: str,
    adapter: str,
    open_channel: Callable[[str], grpc.aio.Channel],
    try_rule_here: Callable[..., object],
) -> None:
    target = QuantizerTarget(
        open_channel(our_quantizer),
        metadata=(("x-martlet-tenant", "acme"),),
        dataset=training_dataset,
        adapter=adapter,
        other_tenant="umbrella",
    )
    run = try_rule_here if rule.name in _MAY_BE_SKIPPED else assert_rule
    await run(rule, target)  # type: ignore[misc]
