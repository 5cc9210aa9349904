"""What a tracker is told of a training, in no tool's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """One training, as one tracker shows it.

    Attributes:
        job_id: of the training.
        tenant: whose it is.
        project, name, entity, tags: as asked for; ``name`` is the job's id by default, ``entity`` may be empty.
        config: what was asked of the training, nested, JSON-ready.
        directory: of the tools that write files; one for the whole deployment.
        tool_run: the tool's own id of the run, as ``Tracker.tool_run`` gave it; empty the first time.
        said_until: the last step that the tool was told of; 0: none yet.
    """

    job_id: str
    tenant: str
    project: str
    name: str
    config: Mapping[str, Any]
    directory: str
    entity: str = ""
    tags: Sequence[str] = ()
    tool_run: str = ""
    said_until: int = 0


@dataclass(frozen=True)
class Point:
    """Numbers measured at a step.

    Attributes:
        number: of the point among the run's, counted from 1; the same whenever the job's events are read again.
        step: optimizer step, counted from 1.
        time: when it was said, seconds since the epoch.
        values: by name.
    """

    number: int
    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class RunEnd:
    """How a training ended.

    Attributes:
        state: ``SUCCEEDED``, ``FAILED`` or ``CANCELLED``.
        time: when, seconds since the epoch.
        config: as the recipe resolved it, nested; empty where it didn't come so far.
        summary: result, data reports, versions, error; nested, JSON-ready.
    """

    state: str
    time: float
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)


class Tracker(Protocol):
    """A tool with a run open. Made with a ``TrackedRun``, which it opens, or goes on with where it is known. Every method may raise
    whatever the tool raises, and may hang: it runs in a process of its own.

    Being told something again must change nothing: after a crash, the last points are repeated.

    Attributes:
        tool_run: the tool's own id of the run.
        known: how many points the tool's server has; None where the tool can't say, and what was told is taken for kept.
    """

    tool_run: str
    known: int | None

    def log(self, points: Sequence[Point]) -> None:
        """Take points, in order."""
        ...

    def close(self, end: RunEnd) -> None:
        """The training is over. Returns once the tool has everything."""
        ...

    def leave(self) -> None:
        """Nothing is said for a while; the run goes on later, in another process."""
        ...


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with names joined by dots; lists stay as they are."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
