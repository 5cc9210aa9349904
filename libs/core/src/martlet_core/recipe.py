"""What a recipe, method or suite is given: the seam between pure algorithms and the job machinery.

An algorithm is a pure function ``run(config, workdir, report, should_stop) -> RecipeResult``. It imports no gRPC, Celery, Redis or
S3 client; ``martlet_core.child`` runs it in a process of its own and speaks for it.

Layout of ``workdir`` (made by the worker supervisor before the process starts):

    job.json              {"job_id", "attempt", "kind", "config"}
    inputs/<name>/        downloaded input artifacts (``training_dataset``, ``base_model``, ``adapter``, ...)
    resume/               the newest verified checkpoint; absent on a fresh start
    checkpoints/step-N/   written by the recipe, handed over with ``report.checkpoint`` and not touched again
    output/<name>/        result directories, each to become an artifact
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from martlet_core.errors import MartletError

#: True once the job should write a checkpoint and return: cancel, pause, preemption or shutdown. Cheap; call it every step.
ShouldStop = Callable[[], bool]


class StopRequested(Exception):
    """Raised by a recipe after it saw ``should_stop()`` and handed over its last checkpoint."""


class FailedWithResult(Exception):
    """Raised by a recipe whose work failed, but which has something to show for it: a report that says why, say.

    The job fails with ``error``. If no other attempt is made, what ``result`` holds is kept with the failed job: its
    values, its outputs as artifacts, and their ids as ``<name>_artifact`` in the result and in the error's metadata.
    """

    def __init__(self, error: MartletError, result: RecipeResult) -> None:
        super().__init__(error.message)
        self.error = error
        self.result = result


class Report(Protocol):
    """How a recipe speaks while it works. All methods return at once and never raise."""

    def phase(self, name: str) -> None:
        """Say what the recipe is doing, in a word or two (``tokenizing``, ``training``)."""
        ...

    def log(self, message: str, level: str = "info") -> None:
        """Add a line to the job's events; level is ``info``, ``warn`` or ``error``."""
        ...

    def metrics(
        self, step: int, total_steps: int, values: Mapping[str, float], eta_seconds: float | None = None
    ) -> None:
        """Report numbers measured at ``step`` (counted from 1) of ``total_steps``; names carry their units."""
        ...

    def checkpoint(self, path: Path, step: int, metrics: Mapping[str, float], is_best: bool = False) -> None:
        """Hand over a finished checkpoint directory; the supervisor uploads it while the recipe goes on."""
        ...

    def partial_result(self, values: Mapping[str, Any]) -> None:
        """Publish parts of the result before the end (the data report, say)."""
        ...


@runtime_checkable
class PublishingReport(Protocol):
    """A ``Report`` through which models can be published for a while; not every one can."""

    def temporary_model(self, path: Path, number: int) -> None:
        """Hand over a finished directory under a number of its own; ``child_protocol.answer_file`` will say its name."""
        ...


@dataclass(frozen=True)
class OutputArtifact:
    """A result directory that becomes an artifact.

    Attributes:
        path: the directory, inside ``workdir/output``.
        kind: ``adapter``, ``model``, ``merged_model``, ``quantized_model``, ``dataset`` or ``report``.
        metadata: facts about the content (``base_model``, ``lora_rank``, ...), JSON-ready.
    """

    path: Path
    kind: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe returns.

    Attributes:
        values: JSON-ready values for the job's result.
        outputs: result directories by name (``model``, ``metrics``).
    """

    values: Mapping[str, Any]
    outputs: Mapping[str, OutputArtifact] = field(default_factory=dict)
