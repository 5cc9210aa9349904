"""The gRPC face of the trainer: validate, convert, call the job service; nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
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
from martlet_core.job_methods import JobMethods, page_of_names
from martlet_core.job_resource import spec_to_dict
from martlet_core.job_service import JobService
from martlet_core.rpc.context import call_context
from martlet_inputs.base_models.catalog import catalog

from martlet_trainer import convert
from martlet_trainer.config import parse_merge_config, parse_training_config
from martlet_trainer.jobs import Submissions
from martlet_trainer.registrations import Registrations

TRAINING_SERVICE = "martlet.trainer.v1.TrainingService"
MERGE_SERVICE = "martlet.trainer.v1.MergeService"


class TrainingServicer(training_service_pb2_grpc.TrainingServiceServicer):
    """``martlet.trainer.v1.TrainingService``.

    Args:
        jobs: the trainer's jobs.
        submissions: checks what callers ask for.
        queue: queue that jobs wait in.
        registrations: the tenants' own base models.
    """

    def __init__(self, jobs: JobService, submissions: Submissions, queue: str, registrations: Registrations) -> None:
        self._jobs = jobs
        self._methods = JobMethods(jobs, convert.TRAINING_JOBS)
        self._registrations = registrations
        self._submissions = submissions
        self._queue = queue

    async def CreateTrainingJob(
        self, request: training_service_pb2.CreateTrainingJobRequest, context: Any
    ) -> training_job_pb2.TrainingJob:
        """Check everything that needs no GPU, then queue."""
        config = parse_training_config(spec_to_dict(request.training_job.spec))
        return await self._methods.create(
            convert.new_training_job(request, config, self._queue),
            lambda tenant: self._submissions.check_training(tenant, config),
            validate_only=request.validate_only,
        )

    async def GetTrainingJob(
        self, request: training_service_pb2.GetTrainingJobRequest, context: Any
    ) -> training_job_pb2.TrainingJob:
        """Look one up."""
        return await self._methods.get(request.name)

    async def ListTrainingJobs(
        self, request: training_service_pb2.ListTrainingJobsRequest, context: Any
    ) -> training_service_pb2.ListTrainingJobsResponse:
        """List the tenant's, newest first."""
        jobs, next_token = await self._methods.page(request)
        return training_service_pb2.ListTrainingJobsResponse(training_jobs=jobs, next_page_token=next_token)

    async def CancelTrainingJob(
        self, request: training_service_pb2.CancelTrainingJobRequest, context: Any
    ) -> training_job_pb2.TrainingJob:
        """Stop for good."""
        return await self._methods.cancel(request.name)

    async def PauseTrainingJob(
        self, request: training_service_pb2.PauseTrainingJobRequest, context: Any
    ) -> training_job_pb2.TrainingJob:
        """Write a checkpoint and give the worker back."""
        return await self._methods.pause(request.name)

    async def ResumeTrainingJob(
        self, request: training_service_pb2.ResumeTrainingJobRequest, context: Any
    ) -> training_job_pb2.TrainingJob:
        """Queue again."""
        return await self._methods.resume(request.name)

    async def WatchTrainingJob(
        self, request: training_service_pb2.WatchTrainingJobRequest, context: Any
    ) -> AsyncIterator[job_pb2.JobEvent]:
        """Stream events to the end."""
        async for event in self._methods.watch(request):
            yield event

    async def ListTrainingJobEvents(
        self, request: training_service_pb2.ListTrainingJobEventsRequest, context: Any
    ) -> job_pb2.ListJobEventsResponse:
        """List past events."""
        return await self._methods.events(request)

    async def ListTrainingCheckpoints(
        self, request: training_service_pb2.ListTrainingCheckpointsRequest, context: Any
    ) -> training_service_pb2.ListTrainingCheckpointsResponse:
        """List kept checkpoints, newest first."""
        job = await self._methods.job(request.name)
        entries, next_token = await self._jobs.checkpoints(
            **self._methods.key(request.name), page_size=request.page_size, page_token=request.page_token
        )
        return training_service_pb2.ListTrainingCheckpointsResponse(
            checkpoints=[convert.checkpoint_to_proto(job, entry) for entry in entries], next_page_token=next_token
        )

    async def ListBaseModels(
        self, request: training_service_pb2.ListBaseModelsRequest, context: Any
    ) -> training_service_pb2.ListBaseModelsResponse:
        """List by name."""
        known = {name: convert.base_model_to_proto(model) for name, model in catalog().items()}
        if request.registered:
            found = await asyncio.to_thread(self._registrations.list, call_context().tenant)
            known = {model.name: convert.registered_model_to_proto(model) for model in found}
        names, next_token = page_of_names(sorted(known), request.page_size, request.page_token)
        return training_service_pb2.ListBaseModelsResponse(
            base_models=[known[name] for name in names], next_page_token=next_token
        )

    async def RegisterBaseModel(
        self, request: training_service_pb2.RegisterBaseModelRequest, context: Any
    ) -> training_service_pb2.BaseModel:
        """Give a model a name."""
        model = await asyncio.to_thread(
            self._registrations.register,
            call_context().tenant,
            request.name,
            request.source,
            request.revision,
            request.chat_template,
        )
        return convert.registered_model_to_proto(model)

    async def GetBaseModel(
        self, request: training_service_pb2.GetBaseModelRequest, context: Any
    ) -> training_service_pb2.BaseModel:
        """Look up what the tenant registered."""
        model = await asyncio.to_thread(self._registrations.get, call_context().tenant, request.name)
        return convert.registered_model_to_proto(model)

    async def UnregisterBaseModel(
        self, request: training_service_pb2.UnregisterBaseModelRequest, context: Any
    ) -> Empty:
        """Forget a name."""
        await asyncio.to_thread(self._registrations.unregister, call_context().tenant, request.name)
        return Empty()


class MergeServicer(merge_service_pb2_grpc.MergeServiceServicer):
    """``martlet.trainer.v1.MergeService``; jobs, submissions and queue as of ``TrainingServicer``."""

    def __init__(self, jobs: JobService, submissions: Submissions, queue: str) -> None:
        self._methods = JobMethods(jobs, convert.MERGE_JOBS)
        self._submissions = submissions
        self._queue = queue

    async def CreateMergeJob(
        self, request: merge_service_pb2.CreateMergeJobRequest, context: Any
    ) -> merge_job_pb2.MergeJob:
        """Check everything that needs no GPU, then queue."""
        config = parse_merge_config(spec_to_dict(request.merge_job.spec))
        return await self._methods.create(
            convert.new_merge_job(request.merge_job, request.request_id, self._queue),
            lambda tenant: self._submissions.check_merge(tenant, config),
            validate_only=request.validate_only,
        )

    async def GetMergeJob(self, request: merge_service_pb2.GetMergeJobRequest, context: Any) -> merge_job_pb2.MergeJob:
        """Look one up."""
        return await self._methods.get(request.name)

    async def ListMergeJobs(
        self, request: merge_service_pb2.ListMergeJobsRequest, context: Any
    ) -> merge_service_pb2.ListMergeJobsResponse:
        """List the tenant's, newest first."""
        jobs, next_token = await self._methods.page(request)
        return merge_service_pb2.ListMergeJobsResponse(merge_jobs=jobs, next_page_token=next_token)

    async def CancelMergeJob(
        self, request: merge_service_pb2.CancelMergeJobRequest, context: Any
    ) -> merge_job_pb2.MergeJob:
        """Stop for good."""
        return await self._methods.cancel(request.name)

    async def WatchMergeJob(
        self, request: merge_service_pb2.WatchMergeJobRequest, context: Any
    ) -> AsyncIterator[job_pb2.JobEvent]:
        """Stream events to the end."""
        async for event in self._methods.watch(request):
            yield event
