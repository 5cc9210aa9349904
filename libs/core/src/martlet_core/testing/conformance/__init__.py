"""The conformance kit: is what answers at an address the service that its contract describes?

Point it at any implementation, ours or not; ``martlet conformance`` does, and docs/conformance.md lists the rules. In pytest,
one test a rule::

    @pytest.mark.parametrize("rule", INFERENCE_RULES, ids=rule_name)
    async def test_rule(rule, target):
        await assert_rule(rule, target)

A kind of job is data (``JobKind``); the rules of jobs are written once (``job_rules``, ``job_life_rules``).
"""

from martlet_core.testing.conformance.evaluator import EVALUATOR_RULES, EvaluatorTarget
from martlet_core.testing.conformance.inference import INFERENCE_RULES, InferenceTarget
from martlet_core.testing.conformance.quantizer import QUANTIZER_RULES, QuantizerTarget
from martlet_core.testing.conformance.rules import (
    Outcome,
    Report,
    Rule,
    RuleBroken,
    RuleResult,
    Skipped,
    Target,
    Untried,
    assert_rule,
    rule_name,
    try_rule,
)
from martlet_core.testing.conformance.runner import CONTRACTS, run_conformance, run_conformance_async
from martlet_core.testing.conformance.trainer import MERGE_RULES, TRAINER_RULES, TrainerTarget

__all__ = [
    "CONTRACTS",
    "EVALUATOR_RULES",
    "INFERENCE_RULES",
    "MERGE_RULES",
    "QUANTIZER_RULES",
    "TRAINER_RULES",
    "EvaluatorTarget",
    "InferenceTarget",
    "Outcome",
    "QuantizerTarget",
    "Report",
    "Rule",
    "RuleBroken",
    "RuleResult",
    "Skipped",
    "Target",
    "TrainerTarget",
    "Untried",
    "assert_rule",
    "rule_name",
    "run_conformance",
    "run_conformance_async",
    "try_rule",
]
