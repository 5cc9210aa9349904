"""The kinds of steps, one file each."""

from __future__ import annotations

from collections.abc import Mapping

from martlet_gateway.runs.steps.base import StepKind
from martlet_gateway.runs.steps.deploy import DeployStep
from martlet_gateway.runs.steps.evaluate import EvaluateStep
from martlet_gateway.runs.steps.gate import GateStep
from martlet_gateway.runs.steps.merge import MergeStep
from martlet_gateway.runs.steps.quantize import QuantizeStep
from martlet_gateway.runs.steps.train import TrainStep

KINDS: Mapping[str, StepKind] = {
    step.kind: step for step in (TrainStep(), MergeStep(), QuantizeStep(), EvaluateStep(), GateStep(), DeployStep())
}
