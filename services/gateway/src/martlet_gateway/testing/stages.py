"""All stages for tests of runs: they speak real gRPC, keep jobs in a dict by the rules of every job store, and do nothing
until a test says how a job ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from martlet.common.v1 import job_pb2
from martlet.evaluator.v1 import evaluation_job_pb2, evaluation_service_pb2, evaluation_service_pb2_grpc
from martlet.quantizer.v1 import quantization_job_pb2, quantization_service_pb2, quantization_service_pb2_grpc
from martlet.trainer.v1 import (
    merge_job_pb2,
    merge_service_pb2,
    merge_service_pb2_grpc,
    training_job_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
)
from martlet_core.errors import InvalidArgument, MartletError, NotFound
from martlet_core.ids import new_id
from martlet_core.job_rules import TRANSITIONS, illegal_transition, unknown_job
from martlet_core.jobs import JobState
from martlet_core.rpc.context import call_context
from martlet_core.rpc.server import Service
from martlet_core.rpc.status import to_status

BASE = "smollm2-135m-instruct"
_END = "finish_"


@dataclass(frozen=True)
class _Kind:
    noun: str
    field: str
    collection: str
    job: type[Message]
    messages: Any
    servicer: Any
    add: Any
    service: str


_KINDS = (
    _Kind(
        "TrainingJob",
        "training_job",
        "trainingJobs",
        training_job_pb2.TrainingJob,
        training_service_pb2,
        training_service_pb2_grpc.TrainingServiceServicer,
        training_service_pb2_grpc.add_TrainingServiceServicer_to_server,
        "martlet.trainer.v1.TrainingService",
    ),
    _Kind(
        "MergeJob",
        "merge_job",
        "mergeJobs",
        merge_job_pb2.MergeJob,
        merge_service_pb2,
        merge_service_pb2_grpc.MergeServiceServicer,
        merge_service_pb2_grpc.add_MergeServiceServicer_to_server,
        "martlet.trainer.v1.MergeService",
    ),
    _Kind(
        "QuantizationJob",
        "quantization_job",
        "quantizationJobs",
        quantization_job_pb2.QuantizationJob,
        quantization_service_pb2,
        quantization_service_pb2_grpc.QuantizationServiceServicer,
        quantization_service_pb2_grpc.add_QuantizationServiceServicer_to_server,
        "martlet.quantizer.v1.QuantizationService",
    ),
    _Kind(
        "EvaluationJob",
        "evaluation_job",
        "evaluationJobs",
        evaluation_job_pb2.EvaluationJob,
        evaluation_service_pb2,
        evaluation_service_pb2_grpc.EvaluationServiceServicer,
        evaluation_service_pb2_grpc.add_EvaluationServiceServicer_to_server,
        "martlet.evaluator.v1.EvaluationService",
    ),
)


@dataclass
class StagesDouble:
    """Trainer, quantizer and evaluator on one address.

    Attributes:
        jobs: by resource name, in the order of their creation.
        failures: errors to raise by method, each once.
        after_create: called with each new job, before the caller hears of it.
        suites: what ListEvaluationSuites answers: suite -> metrics.
    """

    jobs: dict[str, Any] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    by_request_id: dict[tuple[str, str], str] = field(default_factory=dict)
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    after_create: Callable[[Any], None] | None = None
    suites: dict[str, Sequence[str]] = field(default_factory=lambda: {"exact_match": ["accuracy", "rows_right"]})
    _events: dict[str, list[job_pb2.JobEvent]] = field(default_factory=dict)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    def services(self) -> list[Service]:
        """What a server needs to speak for all stages."""
        return [Service(kind.add, _servicer(kind, self)(), kind.service) for kind in _KINDS]

    def job_of(self, step: str, attempt: int = -1) -> Any:
        """The job of a run's step, the newest unless said otherwise; KeyError while there is none."""
        found = [job for job in self.jobs.values() if job.labels.get("martlet-step") == step]
        if not found:
            raise KeyError(step)
        return found[attempt]

    async def move(self, job: Any, action: str) -> Any:
        """Change a job's state by the rules, and tell its watchers."""
        before = _state(job)
        move = TRANSITIONS[action].get(before)
        if move is None:
            raise illegal_transition(job.name.rpartition("/")[2], before, action)
        job.state = job_pb2.JobState.Value(f"JOB_STATE_{move.to.value}")
        if move.to.is_final:
            job.end_time.GetCurrentTime()
        event: Any = job_pb2.JobEvent(message=f"{before.value} -> {move.to.value}", level=job_pb2.EVENT_LEVEL_INFO)
        event.state_change.to_state = job.state
        async with self._news:
            events = self._events.setdefault(job.name, [])
            event.cursor = f"{1000 + len(events)}-0"
            events.append(event)
            self._news.notify_all()
        return job

    async def succeed(self, step: str, **result: Any) -> Any:
        """Let a step's job run and succeed with these fields in its result."""
        job = self.job_of(step)
        if _state(job) is JobState.QUEUED:
            await self.move(job, "claim")
        job.result.MergeFrom(type(job.result)(**result))
        return await self.move(job, _END + "succeeded")

    async def fail(self, step: str, error: MartletError) -> Any:
        """Let a step's job run and fail."""
        job = self.job_of(step)
        if _state(job) is JobState.QUEUED:
            await self.move(job, "claim")
        job.error.CopyFrom(to_status(error))
        return await self.move(job, _END + "failed")

    def check(self, noun: str, spec: Any) -> None:
        """What a stage refuses at submission."""
        if noun == "TrainingJob" and spec.base_model != BASE:
            raise NotFound(
                f"base_model: {spec.base_model!r} is not a registered base model; did you mean {BASE}?",
                reason="BASE_MODEL_NOT_FOUND",
            )
        if noun == "QuantizationJob" and spec.method not in ("bnb-nf4", "w8a8-int8"):
            raise InvalidArgument.field("spec.method", f"{spec.method!r} is no method; known: bnb-nf4, w8a8-int8")


def _servicer(kind: _Kind, double: StagesDouble) -> type:
    """The generated servicer of a kind, with methods that keep jobs in the double."""

    def enter(method: str) -> None:
        if double.failures.get(method):
            raise double.failures[method].pop(0)

    def own(name: str) -> Any:
        if name not in double.jobs or double.owners[name] != call_context().tenant:
            raise unknown_job(name.rpartition("/")[2])
        return double.jobs[name]

    async def create(self: Any, request: Any, context: Any) -> Any:
        enter(f"Create{kind.noun}")
        asked = getattr(request, kind.field)
        double.check(kind.noun, asked.spec)
        key = (call_context().tenant, request.request_id)
        if request.request_id and key in double.by_request_id:
            return double.jobs[double.by_request_id[key]]
        job: Any = kind.job()
        job.MergeFrom(asked)
        job.name, job.state = f"{kind.collection}/{new_id()}", job_pb2.JOB_STATE_QUEUED
        job.create_time.GetCurrentTime()
        if not request.validate_only:
            double.jobs[job.name], double.owners[job.name] = job, key[0]
            double.by_request_id[key] = job.name
            if double.after_create is not None:
                double.after_create(job)
        return job

    async def get(self: Any, request: Any, context: Any) -> Any:
        enter(f"Get{kind.noun}")
        return own(request.name)

    def steer(verb: str, action: str) -> Any:
        async def method(self: Any, request: Any, context: Any) -> Any:
            enter(f"{verb}{kind.noun}")
            job = await double.move(own(request.name), action)
            # Nobody works here, so what was asked of a running job comes true at once.
            if _state(job) is JobState.CANCELLING:
                return await double.move(job, _END + "cancelled")
            return await double.move(job, _END + "paused") if _state(job) is JobState.PAUSING else job

        return method

    async def watch(self: Any, request: Any, context: Any) -> AsyncIterator[job_pb2.JobEvent]:
        enter(f"Watch{kind.noun}")
        job, seen = own(request.name), request.after_cursor
        while True:
            behind = [e for e in double._events.get(job.name, []) if not seen or e.cursor > seen]
            for event in behind:
                seen = event.cursor
                yield event
            if _state(job).is_final:
                return
            async with double._news:
                await double._news.wait()

    async def list_jobs(self: Any, request: Any, context: Any) -> Any:
        tenant, states = call_context().tenant, list(request.states)
        names = [name for name, owner in double.owners.items() if owner == tenant and name.startswith(kind.collection)]
        mine: list[Any] = [double.jobs[name] for name in names]
        found = [job for job in mine if not states or job.state in states]
        return getattr(kind.messages, f"List{kind.noun}sResponse")(**{f"{kind.field}s": found})

    async def suites(self: Any, request: Any, context: Any) -> Any:
        enter("ListEvaluationSuites")
        known = [
            evaluation_service_pb2.EvaluationSuite(name=name, metrics=metrics)
            for name, metrics in double.suites.items()
        ]
        return evaluation_service_pb2.ListEvaluationSuitesResponse(suites=known)

    async def base_models(self: Any, request: Any, context: Any) -> Any:
        return training_service_pb2.ListBaseModelsResponse(base_models=[training_service_pb2.BaseModel(name=BASE)])

    methods = {
        f"Create{kind.noun}": create,
        f"Get{kind.noun}": get,
        f"List{kind.noun}s": list_jobs,
        f"Watch{kind.noun}": watch,
        f"Cancel{kind.noun}": steer("Cancel", "cancel"),
        f"Pause{kind.noun}": steer("Pause", "pause"),
        f"Resume{kind.noun}": steer("Resume", "resume"),
        "ListEvaluationSuites": suites,
        "ListBaseModels": base_models,
    }
    return type(f"{kind.noun}Double", (kind.servicer,), methods)


def _state(job: Any) -> JobState:
    return JobState(job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_"))
