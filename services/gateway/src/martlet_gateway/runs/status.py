"""What is known of a step: the values that the graph, the record and the clients work with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class StepState(str, Enum):
    """Life of a step; the names are those of ``martlet.gateway.v1.RunStepState`` without the prefix."""

    WAITING = "WAITING"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """True for states that an attempt at a step doesn't leave."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED, StepState.CANCELLED})


@dataclass(frozen=True)
class StepStatus:
    """A step as it was last seen; JSON-ready by ``to_dict``.

    Attributes:
        state: where it is.
        job: resource name of its job; empty while there is none, and for gates and deployments.
        attempt: from 1; 0 while it hasn't begun.
        reused: an earlier result stands for it.
        start_time, end_time: seconds since the epoch; 0.0 for "not yet".
        progress: step, total_steps, fraction, metrics, phase, queue_position, eta_seconds.
        outputs: what it made, by the names that references use.
        metrics: its numbers, as gates compare them.
        error: ``MartletError.to_dict()``.
        note: a word for people.
        summary: what counts about its result, in a few words.
    """

    state: StepState = StepState.WAITING
    job: str = ""
    attempt: int = 0
    reused: bool = False
    start_time: float = 0.0
    end_time: float = 0.0
    progress: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    note: str = ""
    summary: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``status_from_dict`` is its inverse."""
        return {**asdict(self), "state": self.state.value}


def status_from_dict(values: Mapping[str, Any]) -> StepStatus:
    """The status that ``StepStatus.to_dict`` described; fields that this version doesn't know are left out."""
    known = {name: value for name, value in values.items() if name in StepStatus.__dataclass_fields__}
    return StepStatus(**{**known, "state": StepState(known["state"])})
