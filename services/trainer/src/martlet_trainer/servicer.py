"""The gRPC face of the trainer: validate, convert, call the job service; nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import (
    merge_job_pb2,
    merge_service_pb2,
    merge_service_pb2_grpc,
    training_job_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
)
from martlet_core.job_proto import event_to_proto, states_from_proto
from martlet_core.job_service import JobService, check_page_size
from martlet_core.jobs import Job
from martlet_core.rpc.context import call_context

from martlet_trainer import convert
from martlet_trainer.base_models.catalog import catalog
from martlet_trainer.config import parse_merge_config, parse_training_config
from martlet_trainer.jobs import Submissions
from martlet_trainer.naming import MERGE, TRAINING

TRAINING_SERVICE = "martlet.trainer.v1.TrainingService"
MERGE_SERVICE = "martlet.trainer.v1.MergeService"


class TrainingServicer(training_service_pb2_grpc.TrainingServiceServicer):
    """``martlet.trainer.v1.TrainingService``.

    Args:
        jobs: the trainer's jobs.
        submissions: checks what callers ask for.
        queue: queue that jobs wait in.
    """

    def __init__(self, jobs: JobService, submissions: Submissions, queue: str) -> None:
        self._jobs = jobs
        self._submissions = submissions
        self._queue = queue

    async def CreateTrainingJob(
        self, request: training_service_pb2.CreateTrainingJobRequest, context: Any
    ) -> training_job_pb2.TrainingJob:
        """Check everything that needs no GPU, then queue."""
        tenant = call_context().tenant
        config = parse_training_config(convert.spec_to_dict(request.training_job.spec))
        new = convert.new_training_job(request, config, self._queue)
        draft = self._jobs.draft(tenant, new)
        await self._submissions.check_training(tenant, config)
        if request.validate_only:
            return convert.training_job_to_proto(draft)
        return await self._show(await self._jobs.create(tenant, new))

    async def GetTrainingJob(
        self, request: training_service_pb2.GetTrainingJobRequest, context: Any
    ) -> training_job_pb2.TrainingJob:
        """Look one up."""
        return await self._show(await self._jobs.get(**_key(request.name, TRAINING)))

    async def ListTrainingJobs(
        self, request: training_service_pb2.ListTrainingJobsRequest, context: Any
    ) -> training_service_pb2.ListTrainingJobsResponse:
        """List the tenant's, newest first."""
        page = await self._jobs.list(
            call_context().tenant,
            kind=TRAINING,
            states=states_from_proto(request.states),
            labels=dict(request.labels),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        jobs = [await self._show(job) for job in page.jobs]
        return training_service_pb2.ListTrainingJobsResponse(training_jobs=jobs, next_page_token=page.next_page_token)

    async def CancelTrainingJob(
        self, request: training_service_pb2.CancelTrainingJobRequest, context: Any
    ) -> training_job_pb2.TrainingJob:
        """Stop for good."""
        return await self._show(await self._jobs.cancel(**_key(request.name, TRAINING)))

    async def PauseTrainingJob(
        self, request: training_service_pb2.PauseTrainingJobRequest, context: Any
    ) -> training_job_pb2.TrainingJob:
        """Write a checkpoint and give the worker back."""
        return await self._show(await self._jobs.pause(**_key(request.name, TRAINING)))

    async def ResumeTrainingJob(
        self, request: training_service_pb2.ResumeTrainingJobRequest, context: Any
    ) -> training_job_pb2.TrainingJob:
        """Queue again."""
        return await self._show(await self._jobs.resume(**_key(request.name, TRAINING)))

    async def WatchTrainingJob(
        self, request: training_service_pb2.WatchTrainingJobRequest, context: Any
    ) -> AsyncIterator[job_pb2.JobEvent]:
        """Stream events to the end."""
        async for event in self._jobs.watch(**_key(request.name, TRAINING), after=request.after_cursor):
            yield event_to_proto(event)

    async def ListTrainingJobEvents(
        self, request: training_service_pb2.ListTrainingJobEventsRequest, context: Any
    ) -> job_pb2.ListJobEventsResponse:
        """List past events."""
        events, next_token = await self._jobs.events(
            **_key(request.name, TRAINING),
            page_size=request.page_size,
            page_token=request.page_token,
            newest_first=request.newest_first,
        )
        return job_pb2.ListJobEventsResponse(
            events=[event_to_proto(event) for event in events], next_page_token=next_token
        )

    async def ListTrainingCheckpoints(
        self, request: training_service_pb2.ListTrainingCheckpointsRequest, context: Any
    ) -> training_service_pb2.ListTrainingCheckpointsResponse:
        """List kept checkpoints, newest first."""
        key = _key(request.name, TRAINING)
        job = await self._jobs.get(**key)
        entries, next_token = await self._jobs.checkpoints(
            **key, page_size=request.page_size, page_token=request.page_token
        )
        return training_service_pb2.ListTrainingCheckpointsResponse(
            checkpoints=[convert.checkpoint_to_proto(job, entry) for entry in entries], next_page_token=next_token
        )

    async def ListBaseModels(
        self, request: training_service_pb2.ListBaseModelsRequest, context: Any
    ) -> training_service_pb2.ListBaseModelsResponse:
        """List the catalogue by name."""
        names, next_token = _page(sorted(catalog()), request.page_size, request.page_token)
        return training_service_pb2.ListBaseModelsResponse(
            base_models=[convert.base_model_to_proto(catalog()[name]) for name in names], next_page_token=next_token
        )

    async def _show(self, job: Job) -> training_job_pb2.TrainingJob:
        return convert.training_job_to_proto(job, await self._jobs.queue_position(job))


class MergeServicer(merge_service_pb2_grpc.MergeServiceServicer):
    """``martlet.trainer.v1.MergeService``; arguments as of ``TrainingServicer``."""

    def __init__(self, jobs: JobService, submissions: Submissions, queue: str) -> None:
        self._jobs = jobs
        self._submissions = submissions
        self._queue = queue

    async def CreateMergeJob(
        self, request: merge_service_pb2.CreateMergeJobRequest, context: Any
    ) -> merge_job_pb2.MergeJob:
        """Check everything that needs no GPU, then queue."""
        tenant = call_context().tenant
        config = parse_merge_config(convert.spec_to_dict(request.merge_job.spec))
        new = convert.new_merge_job(request.merge_job, request.request_id, self._queue)
        draft = self._jobs.draft(tenant, new)
        await self._submissions.check_merge(tenant, config)
        if request.validate_only:
            return convert.merge_job_to_proto(draft)
        return await self._show(await self._jobs.create(tenant, new))

    async def GetMergeJob(self, request: merge_service_pb2.GetMergeJobRequest, context: Any) -> merge_job_pb2.MergeJob:
        """Look one up."""
        return await self._show(await self._jobs.get(**_key(request.name, MERGE)))

    async def ListMergeJobs(
        self, request: merge_service_pb2.ListMergeJobsRequest, context: Any
    ) -> merge_service_pb2.ListMergeJobsResponse:
        """List the tenant's, newest first."""
        page = await self._jobs.list(
            call_context().tenant,
            kind=MERGE,
            states=states_from_proto(request.states),
            labels=dict(request.labels),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        jobs = [await self._show(job) for job in page.jobs]
        return merge_service_pb2.ListMergeJobsResponse(merge_jobs=jobs, next_page_token=page.next_page_token)

    async def CancelMergeJob(
        self, request: merge_service_pb2.CancelMergeJobRequest, context: Any
    ) -> merge_job_pb2.MergeJob:
        """Stop for good."""
        return await self._show(await self._jobs.cancel(**_key(request.name, MERGE)))

    async def WatchMergeJob(
        self, request: merge_service_pb2.WatchMergeJobRequest, context: Any
    ) -> AsyncIterator[job_pb2.JobEvent]:
        """Stream events to the end."""
        async for event in self._jobs.watch(**_key(request.name, MERGE), after=request.after_cursor):
            yield event_to_proto(event)

    async def _show(self, job: Job) -> merge_job_pb2.MergeJob:
        return convert.merge_job_to_proto(job, await self._jobs.queue_position(job))


def _key(name: str, kind: str) -> dict[str, str]:
    """Whose job of which kind a resource name means, as arguments of the job service."""
    return {"tenant": call_context().tenant, "job_id": convert.job_id(name, kind), "kind": kind}


def _page(names: Sequence[str], page_size: int, page_token: str) -> tuple[Sequence[str], str]:
    """A page of sorted names; a token is the last name seen."""
    size = check_page_size(page_size, default=100)
    rest = [name for name in names if name > page_token]
    return rest[:size], rest[size - 1] if len(rest) > size else ""
