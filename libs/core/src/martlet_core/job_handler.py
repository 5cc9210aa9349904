"""What a stage plugs into the worker: how a kind of job becomes a recipe's config and inputs, and what its outputs
mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from martlet_core.artifacts.types import Artifact, PublishedModel
from martlet_core.jobs import Job


@dataclass(frozen=True)
class PreparedJob:
    """What the recipe is started with.

    Attributes:
        config: goes into ``job.json``; JSON-ready.
        inputs: artifact ids by the name of the directory under ``inputs/`` that they are downloaded to.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FinishedJob:
    """What came of a job.

    Attributes:
        result: goes into the job's record; JSON-ready.
        model: the model to publish; None when the job makes none.
    """

    result: Mapping[str, Any]
    model: PublishedModel | None = None


class JobHandler(Protocol):
    """One kind of job. Methods raise ``martlet_core.errors``: Unavailable is tried again, anything else fails the
    job.
    """

    @property
    def kind(self) -> str:
        """``Job.kind`` that this handler is for."""
        ...

    @property
    def entrypoint(self) -> str:
        """The recipe, ``module:function``; it is imported in the child process only."""
        ...

    def gpus_needed(self, job: Job) -> int:
        """How many GPUs the job computes on where there are any; 0 for none. Asked again and again while the job waits,
        so by its spec alone."""
        ...

    def prepare(self, job: Job) -> PreparedJob:
        """Say what the recipe needs."""
        ...

    def finish(self, job: Job, values: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> FinishedJob:
        """Turn what the recipe returned, and its committed outputs by name, into the job's result. Must not write
        anything.
        """
        ...

    def published_model(self, job: Job) -> PublishedModel | None:
        """The model that a SUCCEEDED job's record says was published, so that a lost publication can be made good."""
        ...

    def checkpoint_model(self, job: Job, checkpoint: Mapping[str, Any]) -> PublishedModel | None:
        """The model to publish for a checkpoint (an entry of ``Job.checkpoints``); None where it can't be served."""
        ...


@runtime_checkable
class PublishesMeanwhile(Protocol):
    """A handler whose jobs publish models for a while, to ask replicas for answers of what they are training (``temporary_models``)."""

    def temporary_model(self, job: Job, number: int, artifact_id: str) -> PublishedModel:
        """The model to publish for a directory that the attempt's process handed over under a number. Its name must be one that no
        other attempt, job or number has.
        """
        ...


@runtime_checkable
class TriesItsModel(Protocol):
    """A handler that asks for its model's answer before the job is over. The model is published for that time already, and
    withdrawn again where the job then doesn't succeed.
    """

    def try_out(self, job: Job, finished: FinishedJob, give_up: Callable[[], bool]) -> FinishedJob:
        """Try the published model and return what to commit, which says how that went: a trial never fails the job. Also
        called for a job without a model, and once ``give_up()`` is true already; it must then come back at once.
        """
        ...

    def tried_name(self, job: Job) -> str | None:
        """The name that attempts at the job publish before their end; None when it has none."""
        ...
