"""A trainer for tests of whole gateways: it speaks real gRPC, keeps jobs in a dict by the rules of every job store, and trains
nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.empty_pb2 import Empty
from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import (
    merge_job_pb2,
    merge_service_pb2,
    merge_service_pb2_grpc,
    training_job_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
)
from martlet_core.errors import InvalidArgument, NotFound
from martlet_core.ids import new_id
from martlet_core.job_rules import TRANSITIONS, illegal_transition, unknown_job
from martlet_core.jobs import JobState
from martlet_core.rpc.context import call_context

BASE = "smollm2-135m-instruct"


@dataclass
class Call:
    """A call that reached the trainer."""

    method: str
    tenant: str
    request_id: str
    request: Any


@dataclass
class TrainerDouble(training_service_pb2_grpc.TrainingServiceServicer, merge_service_pb2_grpc.MergeServiceServicer):
    """A trainer that keeps jobs in a dict and trains nothing.

    Attributes:
        calls: everything that reached it.
        jobs: by bare id.
        events: of each job, oldest first.
        failures: errors to raise by method, each once.
    """

    calls: list[Call] = field(default_factory=list)
    jobs: dict[str, training_job_pb2.TrainingJob] = field(default_factory=dict)
    merges: dict[str, merge_job_pb2.MergeJob] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    events: dict[str, list[job_pb2.JobEvent]] = field(default_factory=dict)
    checkpoints: dict[str, list[training_job_pb2.TrainingCheckpoint]] = field(default_factory=dict)
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    by_request_id: dict[tuple[str, str], str] = field(default_factory=dict)
    base_models: tuple[str, ...] = (BASE, "qwen-tiny")
    registered: dict[tuple[str, str], training_service_pb2.BaseModel] = field(default_factory=dict)

    def _enter(self, method: str, request: Any) -> None:
        context = call_context()
        self.calls.append(Call(method, context.tenant, context.request_id, request))
        if self.failures.get(method):
            raise self.failures[method].pop(0)

    def _own(self, name: str) -> training_job_pb2.TrainingJob:
        bare = name.removeprefix("trainingJobs/")
        if self.owners.get(bare) != call_context().tenant:
            raise unknown_job(bare)
        return self.jobs[bare]

    async def CreateTrainingJob(
        self, request: training_service_pb2.CreateTrainingJobRequest, context: Any
    ) -> training_job_pb2.TrainingJob:
        self._enter("CreateTrainingJob", request)
        spec = request.training_job.spec
        if spec.base_model not in self.base_models:
            raise NotFound(
                f"base_model: {spec.base_model!r} is not a registered base model; did you mean {BASE}?",
                reason="BASE_MODEL_NOT_FOUND",
                metadata={"close_matches": BASE},
            )
        if spec.hyperparameters.learning_rate > 10:
            raise InvalidArgument.field("spec.hyperparameters.learning_rate", "is 11.0; must be > 0 and <= 10")
        key = (call_context().tenant, request.request_id)
        if request.request_id and key in self.by_request_id:
            return self.jobs[self.by_request_id[key]]
        job = training_job_pb2.TrainingJob(
            name=f"trainingJobs/{new_id()}",
            spec=spec,
            state=job_pb2.JOB_STATE_QUEUED,
            labels=request.training_job.labels,
            display_name=request.training_job.display_name,
        )
        job.create_time.GetCurrentTime()
        job.update_time.GetCurrentTime()
        job.progress.queue_position = 1
        bare = job.name.removeprefix("trainingJobs/")
        self.jobs[bare], self.owners[bare] = job, call_context().tenant
        self.by_request_id[key] = bare
        return job

    async def GetTrainingJob(self, request: Any, context: Any) -> training_job_pb2.TrainingJob:
        self._enter("GetTrainingJob", request)
        return self._own(request.name)

    async def ListTrainingJobs(self, request: Any, context: Any) -> training_service_pb2.ListTrainingJobsResponse:
        self._enter("ListTrainingJobs", request)
        own = [i for i in sorted(self.jobs, reverse=True) if self.owners[i] == call_context().tenant]
        own = [i for i in own if not request.states or self.jobs[i].state in request.states]
        own = [i for i in own if all(self.jobs[i].labels.get(k) == v for k, v in request.labels.items())]
        own = [i for i in own if not request.page_token or i < request.page_token]
        size = request.page_size or 20
        token = own[size - 1] if len(own) > size else ""
        page = [self.jobs[i] for i in own[:size]]
        return training_service_pb2.ListTrainingJobsResponse(training_jobs=page, next_page_token=token)

    def _steer(self, name: str, action: str) -> training_job_pb2.TrainingJob:
        """By the rules of every job store, with their errors."""
        job: Any = self._own(name)
        before = JobState(job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_"))
        move = TRANSITIONS[action].get(before)
        if move is None:
            raise illegal_transition(name.removeprefix("trainingJobs/"), before, action)
        job.state = job_pb2.JobState.Value(f"JOB_STATE_{move.to.value}")
        return job

    async def CancelTrainingJob(self, request: Any, context: Any) -> training_job_pb2.TrainingJob:
        self._enter("CancelTrainingJob", request)
        return self._steer(request.name, "cancel")

    async def PauseTrainingJob(self, request: Any, context: Any) -> training_job_pb2.TrainingJob:
        self._enter("PauseTrainingJob", request)
        return self._steer(request.name, "pause")

    async def ResumeTrainingJob(self, request: Any, context: Any) -> training_job_pb2.TrainingJob:
        self._enter("ResumeTrainingJob", request)
        return self._steer(request.name, "resume")

    async def ListTrainingJobEvents(self, request: Any, context: Any) -> job_pb2.ListJobEventsResponse:
        self._enter("ListTrainingJobEvents", request)
        self._own(request.name)
        events = self._behind(request.name, request.page_token, newest_first=request.newest_first)
        size = request.page_size or 100
        token = events[size - 1].cursor if len(events) > size else ""
        return job_pb2.ListJobEventsResponse(events=events[:size], next_page_token=token)

    async def WatchTrainingJob(self, request: Any, context: Any) -> AsyncIterator[job_pb2.JobEvent]:
        self._enter("WatchTrainingJob", request)
        self._own(request.name)
        for event in self._behind(request.name, request.after_cursor):
            yield event

    def _behind(self, name: str, cursor: str, *, newest_first: bool = False) -> list[job_pb2.JobEvent]:
        events = self.events.get(name.removeprefix("trainingJobs/"), [])
        events = events[::-1] if newest_first else events
        places = [i for i, event in enumerate(events) if event.cursor == cursor]
        return events[places[0] + 1 :] if places else list(events)

    async def ListTrainingCheckpoints(
        self, request: Any, context: Any
    ) -> training_service_pb2.ListTrainingCheckpointsResponse:
        self._enter("ListTrainingCheckpoints", request)
        self._own(request.name)
        kept = self.checkpoints.get(request.name.removeprefix("trainingJobs/"), [])
        return training_service_pb2.ListTrainingCheckpointsResponse(checkpoints=kept)

    async def ListBaseModels(self, request: Any, context: Any) -> training_service_pb2.ListBaseModelsResponse:
        self._enter("ListBaseModels", request)
        if request.registered:
            own = [model for (tenant, _), model in self.registered.items() if tenant == call_context().tenant]
            return training_service_pb2.ListBaseModelsResponse(base_models=own)
        models = [
            training_service_pb2.BaseModel(
                name=name, source="a package", parameter_count=135_000_000, license="Apache-2.0"
            )
            for name in self.base_models
        ]
        return training_service_pb2.ListBaseModelsResponse(base_models=models)

    async def RegisterBaseModel(self, request: Any, context: Any) -> training_service_pb2.BaseModel:
        self._enter("RegisterBaseModel", request)
        source = f"{request.source}@{request.revision}" if request.revision else request.source
        model = training_service_pb2.BaseModel(name=request.name, source=source, chat_template=request.chat_template)
        return self.registered.setdefault((call_context().tenant, request.name), model)

    async def GetBaseModel(self, request: Any, context: Any) -> training_service_pb2.BaseModel:
        self._enter("GetBaseModel", request)
        return self._registered_model(request.name)

    async def UnregisterBaseModel(self, request: Any, context: Any) -> Empty:
        self._enter("UnregisterBaseModel", request)
        del self.registered[call_context().tenant, self._registered_model(request.name).name]
        return Empty()

    def _registered_model(self, name: str) -> training_service_pb2.BaseModel:
        found = self.registered.get((call_context().tenant, name))
        if found is None:
            raise NotFound(f"There is no model {name!r}.", reason="MODEL_NOT_FOUND")
        return found

    async def CreateMergeJob(self, request: Any, context: Any) -> merge_job_pb2.MergeJob:
        self._enter("CreateMergeJob", request)
        job = merge_job_pb2.MergeJob(name=f"mergeJobs/{new_id()}", spec=request.merge_job.spec)
        job.state = job_pb2.JOB_STATE_QUEUED
        job.create_time.GetCurrentTime()
        self.merges[job.name] = job
        return job

    async def GetMergeJob(self, request: Any, context: Any) -> merge_job_pb2.MergeJob:
        self._enter("GetMergeJob", request)
        if request.name not in self.merges:
            raise unknown_job(request.name.removeprefix("mergeJobs/"))
        return self.merges[request.name]

    async def CancelMergeJob(self, request: Any, context: Any) -> merge_job_pb2.MergeJob:
        job = await self.GetMergeJob(request, context)
        job.state = job_pb2.JOB_STATE_CANCELLED
        return job

    async def ListMergeJobs(self, request: Any, context: Any) -> merge_service_pb2.ListMergeJobsResponse:
        self._enter("ListMergeJobs", request)
        return merge_service_pb2.ListMergeJobsResponse(merge_jobs=list(self.merges.values()))

    async def WatchMergeJob(self, request: Any, context: Any) -> AsyncIterator[job_pb2.JobEvent]:
        self._enter("WatchMergeJob", request)
        yield job_pb2.JobEvent(cursor="1-0", message="merging")

    def say(self, job_id: str, *events: job_pb2.JobEvent) -> None:
        """Add events to a job; cursors and times are filled in."""
        bare = job_id.removeprefix("ftjob-")
        known = self.events.setdefault(bare, [])
        for event in events:
            event.cursor = f"{1000 + len(known)}-0"
            event.create_time.GetCurrentTime()
            known.append(event)

    def finish(self, job_id: str, **result: Any) -> training_job_pb2.TrainingJob:
        """Let a job succeed."""
        job = self.jobs[job_id.removeprefix("ftjob-")]
        job.state = job_pb2.JOB_STATE_SUCCEEDED
        job.end_time.GetCurrentTime()
        job.result.MergeFrom(training_job_pb2.TrainingResult(**result))
        return job
