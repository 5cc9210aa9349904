"""The quantizer contract, rule by rule, on our service. No worker runs: the rules are about jobs, not about quantizing."""

from __future__ import annotations

from collections.abc import Callable

import grpc.aio
import pytest
from martlet_core.testing.conformance import QUANTIZER_CHECKS, Check, QuantizerTarget, assert_check, check_name

#: What can't be tried here, for want of a worker or of reflection; every other rule must be.
_MAY_BE_SKIPPED = ("reflection_lists_the_service", "quantization_succeeds")


@pytest.mark.parametrize("check", QUANTIZER_CHECKS, ids=check_name)
async def test_our_service(
    check: Check,
    our_quantizer: str,
    training_dataset: str,
    adapter: str,
    open_channel: Callable[[str], grpc.aio.Channel],
    try_check: Callable[..., object],
) -> None:
    target = QuantizerTarget(
        open_channel(our_quantizer),
        metadata=(("x-martlet-tenant", "acme"),),
        calibration_dataset=training_dataset,
        adapter=adapter,
        other_tenant="umbrella",
    )
    run = try_check if check_name(check) in _MAY_BE_SKIPPED else assert_check
    await run(check, target)  # type: ignore[misc]
