"""What a kind of step is: the one interface that ``train``, ``merge``, ``quantize``, ``evaluate``, ``gate`` and ``deploy``
have in common.

A kind either has a job at some stage (``JobStep``), or is done by the run's worker at once (``ImmediateStep``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from martlet.common.v1 import job_pb2
from martlet_core.artifacts.types import ModelRegistry
from martlet_core.rpc.status import from_status

from martlet_gateway import proto_json
from martlet_gateway.aliases import AliasStore
from martlet_gateway.clients import Stages
from martlet_gateway.job_kinds import JobKind
from martlet_gateway.runs.marks import Mistakes
from martlet_gateway.runs.references import references
from martlet_gateway.runs.status import StepState, StepStatus

_STATES = {
    "VALIDATING": StepState.QUEUED,
    "QUEUED": StepState.QUEUED,
    "RUNNING": StepState.RUNNING,
    "PAUSING": StepState.RUNNING,
    "PAUSED": StepState.PAUSED,
    "CANCELLING": StepState.RUNNING,
    "SUCCEEDED": StepState.SUCCEEDED,
    "FAILED": StepState.FAILED,
    "CANCELLED": StepState.CANCELLED,
}
_UNKNOWN = "is not known here"
RUN_LABEL, STEP_LABEL = "martlet-run", "martlet-step"


@dataclass(frozen=True)
class StepWorld:
    """What steps may use.

    Attributes:
        stages: the stages' services.
        models: published model names.
        aliases: names that move.
        base_models: names the base models that the trainer knows.
    """

    stages: Stages
    models: ModelRegistry
    aliases: AliasStore
    base_models: Callable[[], Awaitable[list[str]]]


@dataclass(frozen=True)
class StepPlace:
    """Which attempt at which step of which run.

    Attributes:
        run: id of the run.
        tenant: owner.
    """

    run: str
    step: str
    attempt: int
    tenant: str

    @property
    def request_id(self) -> str:
        """Makes creating the step's job idempotent."""
        return f"run-{self.run}-{self.step}-{self.attempt}"


class StepKind(ABC):
    """A kind of step.

    Attributes:
        kind: its name in definitions.
        title: what it does, for the JSON Schema.
        outputs: what references may ask of it, with a description.
        known_metrics: the metrics that it can have; None where that isn't known before it has run.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    outputs: ClassVar[Mapping[str, str]]
    known_metrics: ClassVar[frozenset[str] | None] = None

    @abstractmethod
    def check(self, options: Mapping[str, Any], path: str, mistakes: Mistakes) -> None:
        """Note what is wrong with ``with``, as far as it can be known; its references are still there."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """JSON Schema of ``with``."""

    def implied_needs(self, options: Mapping[str, Any]) -> list[str]:
        """Steps that ``with`` needs otherwise than by references."""
        return []

    async def metrics_known(self, world: StepWorld, options: Mapping[str, Any]) -> frozenset[str] | None:
        """The metrics that a step with these options can have, asking its stage if need be; None where it can't be known."""
        return self.known_metrics


class ImmediateStep(StepKind):
    """A step that the run's worker does itself. Doing it again must do no harm."""

    @abstractmethod
    async def perform(
        self, world: StepWorld, place: StepPlace, options: Mapping[str, Any], steps: Mapping[str, StepStatus]
    ) -> StepStatus:
        """Do it. Passing errors are tried again, others fail the step.

        Args:
            world: what it may use.
            place: which step.
            options: ``with``, without references.
            steps: what is known of the run's steps.
        """


class JobStep(StepKind):
    """A step with a job.

    Attributes:
        jobs: the kind of its job.
        required: fields that a specification must have.
    """

    jobs: ClassVar[JobKind]
    required: ClassVar[tuple[str, ...]] = ()

    @property
    def can_pause(self) -> bool:
        """Whether the stage can pause such jobs."""
        return self.jobs.can_pause

    @abstractmethod
    def outputs_of(self, job: Any) -> dict[str, str]:
        """What a job that succeeded made."""

    @abstractmethod
    def numbers_of(self, job: Any) -> dict[str, float]:
        """The numbers of a job that succeeded."""

    def summary_of(self, job: Any, metrics: Mapping[str, float]) -> str:
        """What counts about the result, in a few words."""
        return ", ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:1])

    def check(self, options: Mapping[str, Any], path: str, mistakes: Mistakes) -> None:
        """Read the options as the stage's specification."""
        kept = {where for where, _, _ in references(dict(options), path)}
        for where, text in faults(self.jobs.spec(), options, path, kept):
            unknown = _UNKNOWN in text
            mistakes.add(where, f"`{where.rpartition('.')[2]}` {text}" if unknown else text, of_key=unknown)
        for name in self.required:
            if options.get(name) in (None, "", []):
                mistakes.add(path, f"`{name}` is missing; a step of kind {self.kind} needs it.")

    def schema(self) -> dict[str, Any]:
        """The specification, field by field."""
        from martlet_gateway.runs.schema import of_message

        return of_message(self.jobs.spec.DESCRIPTOR, self.required)

    # The job

    def draft(self, place: StepPlace, options: Mapping[str, Any], *, validate_only: bool = False) -> Any:
        """The request that creates the job. InvalidArgument if the options don't fit the contract."""
        request = self.jobs.request("Create")
        request.request_id = "" if validate_only else place.request_id
        request.validate_only = validate_only
        job = getattr(request, self.jobs.field)
        proto_json.fill(job.spec, options, "with")
        job.labels.update({RUN_LABEL: place.run, STEP_LABEL: place.step} if place.run else {})
        job.display_name = f"{place.step} of run {place.run}"[:128] if place.run else ""
        return request

    async def create(self, world: StepWorld, request: Any) -> str:
        """Create the job, or find it; returns its resource name."""
        return (await self._call(world, f"Create{self.jobs.noun}", request)).name

    async def look(self, world: StepWorld, job: str) -> StepStatus:
        """The step as its job has it; ``attempt`` and ``reused`` are the caller's."""
        return self.read(await self._call(world, f"Get{self.jobs.noun}", self.jobs.request("Get", name=job)))

    async def steer(self, world: StepWorld, verb: str, job: str) -> None:
        """``Cancel``, ``Pause`` or ``Resume`` the job."""
        await self._call(world, f"{verb}{self.jobs.noun}", self.jobs.request(verb, name=job))

    def watch(self, world: StepWorld, job: str, cursor: str) -> AsyncIterator[job_pb2.JobEvent]:
        """The job's events behind a cursor."""
        request = self.jobs.request("Watch", name=job, after_cursor=cursor)
        return self.jobs.client(world.stages).watch(self.jobs.service, f"Watch{self.jobs.noun}", request)

    def read(self, job: Any) -> StepStatus:
        """A job's message as a step's status."""
        state = _STATES.get(job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_"), StepState.RUNNING)
        done = state is StepState.SUCCEEDED
        metrics = self.numbers_of(job) if done else {}
        progress = {k: v for k, v in proto_json.to_json(job.progress).items() if v not in (0, "", {}, None)}
        return StepStatus(
            state=state,
            job=job.name,
            start_time=_seconds(job.create_time),
            end_time=_seconds(job.end_time) if job.HasField("end_time") else 0.0,
            progress=progress,
            outputs=self.outputs_of(job) if done else {},
            metrics=metrics,
            error=from_status(job.error).to_dict() if job.HasField("error") else None,
            summary=self.summary_of(job, metrics) if done else "",
        )

    async def _call(self, world: StepWorld, method: str, request: Message) -> Any:
        return await self.jobs.call(world.stages, method, request)


def faults(message: Message, options: Any, path: str, kept: set[str]) -> list[tuple[str, str]]:
    """What is wrong with options, as (path, text). Values at the paths ``kept`` are references: any text field takes one."""
    from martlet_core.errors import InvalidArgument

    try:
        proto_json.fill(message, options, path)
    except InvalidArgument as error:
        return [(v.field, _of_reference(v.description) if v.field in kept else v.description) for v in error.violations]
    return []


def _of_reference(text: str) -> str:
    return f"{text.removesuffix('.')}; a reference to a step's output is text, so only a text field takes it."


def plain(message: Message) -> dict[str, Any]:
    """A Struct as a dict."""
    return MessageToDict(message)


def _seconds(timestamp: Any) -> float:
    return timestamp.ToMicroseconds() / 1e6
