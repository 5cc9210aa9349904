"""Runs all checks of a contract against an address."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio

from martlet_core.testing.conformance.checks import Check, Report, Target, run_check
from martlet_core.testing.conformance.evaluator import EVALUATOR_CHECKS
from martlet_core.testing.conformance.evaluator_target import EvaluatorTarget
from martlet_core.testing.conformance.inference import INFERENCE_CHECKS, InferenceTarget
from martlet_core.testing.conformance.quantizer import QUANTIZER_CHECKS
from martlet_core.testing.conformance.quantizer_target import QuantizerTarget
from martlet_core.testing.conformance.trainer import TRAINER_CHECKS, TrainerTarget


@dataclass(frozen=True)
class Contract:
    """A contract that can be checked: its checks, in the order they run, and the class of its targets."""

    checks: Sequence[Check]
    target_class: type[Target]


CONTRACTS: Mapping[str, Contract] = {
    "evaluator": Contract(EVALUATOR_CHECKS, EvaluatorTarget),
    "inference": Contract(INFERENCE_CHECKS, InferenceTarget),
    "quantizer": Contract(QUANTIZER_CHECKS, QuantizerTarget),
    "trainer": Contract(TRAINER_CHECKS, TrainerTarget),
}


def run_conformance(contract: str, address: str, *, metadata: Sequence[tuple[str, str]] = (), **options: Any) -> Report:
    """Check what answers at ``address`` and return the report; ``print(report.table())`` shows it.

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
        results = [await run_check(check, target) for check in chosen.checks]
    return Report(contract, address, results)
