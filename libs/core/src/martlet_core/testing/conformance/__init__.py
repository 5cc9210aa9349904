"""The conformance kit: is what answers at an address the service that its contract describes?

Point it at any implementation, ours or not; it needs nothing but the address::

    python -m martlet_core.testing.conformance inference 127.0.0.1:50053

or, in pytest, one test a rule::

    @pytest.mark.parametrize("check", INFERENCE_CHECKS, ids=check_name)
    async def test_rule(check, address):
        await assert_check(check, target)
"""

from martlet_core.testing.conformance.checks import (
    Check,
    CheckResult,
    Outcome,
    Report,
    RuleBroken,
    Skipped,
    Target,
    assert_check,
    check_name,
)
from martlet_core.testing.conformance.evaluator import EVALUATOR_CHECKS
from martlet_core.testing.conformance.evaluator_target import EvaluatorTarget
from martlet_core.testing.conformance.inference import INFERENCE_CHECKS, InferenceTarget
from martlet_core.testing.conformance.quantizer import QUANTIZER_CHECKS
from martlet_core.testing.conformance.quantizer_target import QuantizerTarget
from martlet_core.testing.conformance.runner import CONTRACTS, run_conformance, run_conformance_async
from martlet_core.testing.conformance.trainer import TRAINER_CHECKS, TrainerTarget
from martlet_core.testing.conformance.trainer_merge import MERGE_CHECKS

__all__ = [
    "CONTRACTS",
    "EVALUATOR_CHECKS",
    "INFERENCE_CHECKS",
    "MERGE_CHECKS",
    "QUANTIZER_CHECKS",
    "TRAINER_CHECKS",
    "Check",
    "CheckResult",
    "EvaluatorTarget",
    "InferenceTarget",
    "Outcome",
    "QuantizerTarget",
    "Report",
    "RuleBroken",
    "Skipped",
    "Target",
    "TrainerTarget",
    "assert_check",
    "check_name",
    "run_conformance",
    "run_conformance_async",
]
