"""Tries all rules of a contract on what answers at an address."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio

from martlet_core.testing.conformance.evaluator import EVALUATOR_RULES, EvaluatorTarget
from martlet_core.testing.conformance.inference import INFERENCE_RULES, InferenceTarget
from martlet_core.testing.conformance.quantizer import QUANTIZER_RULES, QuantizerTarget
from martlet_core.testing.conformance.rules import Report, Rule, Target, try_rule
from martlet_core.testing.conformance.trainer import TRAINER_RULES, TrainerTarget


@dataclass(frozen=True)
class Contract:
    """A contract that can be tried: its rules, in the order they are tried, and the class of its targets."""

    rules: Sequence[Rule]
    target_class: type[Target]

    def options(self) -> Sequence[dataclasses.Field[Any]]:
        """What a caller may name beside the address: the fields of the target with a help text."""
        return [field for field in dataclasses.fields(self.target_class) if "help" in field.metadata]


CONTRACTS: Mapping[str, Contract] = {
    "evaluator": Contract(EVALUATOR_RULES, EvaluatorTarget),
    "inference": Contract(INFERENCE_RULES, InferenceTarget),
    "quantizer": Contract(QUANTIZER_RULES, QuantizerTarget),
    "trainer": Contract(TRAINER_RULES, TrainerTarget),
}


def run_conformance(contract: str, address: str, *, metadata: Sequence[tuple[str, str]] = (), **options: Any) -> Report:
    """Try what answers at ``address`` and return the report; ``print(report.table())`` shows it.

    Args:
        contract: one of ``CONTRACTS``.
        address: ``host:port``.
        metadata: sent with every call.
        options: further fields of the contract's target (``TrainerTarget``, ``QuantizerTarget``, ...).
    """
    return asyncio.run(run_conformance_async(contract, address, metadata=metadata, **options))


async def run_conformance_async(
    contract: str, address: str, *, metadata: Sequence[tuple[str, str]] = (), **options: Any
) -> Report:
    """See ``run_conformance``."""
    chosen = CONTRACTS[contract]
    async with grpc.aio.insecure_channel(address) as channel:
        target = chosen.target_class(channel=channel, metadata=tuple(metadata), **options)
        results = [await try_rule(rule, target) for rule in chosen.rules]
    return Report(contract, address, results)
