"""Kinds of the evaluator's jobs, and names of their inputs."""

from __future__ import annotations

#: ``Job.kind`` of the evaluator's jobs.
EVALUATION = "evaluation"


def model_input(index: int) -> str:
    """Directory under ``inputs/`` with the whole model of the target at ``index``."""
    return f"model-{index}"


def adapter_input(index: int) -> str:
    """The same for its adapter."""
    return f"adapter-{index}"
