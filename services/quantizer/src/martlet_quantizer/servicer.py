"""The gRPC face of the quantizer: validate, convert, call the job service; nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from martlet.common.v1 import job_pb2
from martlet.quantizer.v1 import quantization_job_pb2 as job_messages
from martlet.quantizer.v1 import quantization_service_pb2 as messages
from martlet.quantizer.v1 import quantization_service_pb2_grpc
from martlet_core.job_methods import JobMethods, page_of_names
from martlet_core.job_resource import spec_to_dict
from martlet_core.job_service import JobService

from martlet_quantizer import convert
from martlet_quantizer.config import parse_config
from martlet_quantizer.jobs import Submissions
from martlet_quantizer.methods import METHODS, find

QUANTIZATION_SERVICE = "martlet.quantizer.v1.QuantizationService"


class QuantizationServicer(quantization_service_pb2_grpc.QuantizationServiceServicer):
    """``martlet.quantizer.v1.QuantizationService``.

    Args:
        jobs: the quantizer's jobs.
        submissions: checks what callers ask for.
        queue_of: the queue of a family of methods.
    """

    def __init__(self, jobs: JobService, submissions: Submissions, queue_of: Callable[[str], str]) -> None:
        self._methods = JobMethods(jobs, convert.QUANTIZATION_JOBS)
        self._submissions = submissions
        self._queue_of = queue_of

    async def CreateQuantizationJob(
        self, request: messages.CreateQuantizationJobRequest, context: Any
    ) -> job_messages.QuantizationJob:
        """Check everything that needs no model in memory, then queue for the method's family."""
        config = parse_config(spec_to_dict(request.quantization_job.spec))
        queue = self._queue_of(find(config.method).family)
        return await self._methods.create(
            convert.new_job(request, config, queue),
            lambda tenant: self._submissions.check(tenant, config),
            validate_only=request.validate_only,
        )

    async def GetQuantizationJob(
        self, request: messages.GetQuantizationJobRequest, context: Any
    ) -> job_messages.QuantizationJob:
        """Look one up."""
        return await self._methods.get(request.name)

    async def ListQuantizationJobs(
        self, request: messages.ListQuantizationJobsRequest, context: Any
    ) -> messages.ListQuantizationJobsResponse:
        """List the tenant's, newest first."""
        jobs, next_token = await self._methods.page(request)
        return messages.ListQuantizationJobsResponse(quantization_jobs=jobs, next_page_token=next_token)

    async def CancelQuantizationJob(
        self, request: messages.CancelQuantizationJobRequest, context: Any
    ) -> job_messages.QuantizationJob:
        """Stop for good."""
        return await self._methods.cancel(request.name)

    async def PauseQuantizationJob(
        self, request: messages.PauseQuantizationJobRequest, context: Any
    ) -> job_messages.QuantizationJob:
        """Give the worker back; the job begins anew when it is resumed."""
        return await self._methods.pause(request.name)

    async def ResumeQuantizationJob(
        self, request: messages.ResumeQuantizationJobRequest, context: Any
    ) -> job_messages.QuantizationJob:
        """Queue again."""
        return await self._methods.resume(request.name)

    async def WatchQuantizationJob(
        self, request: messages.WatchQuantizationJobRequest, context: Any
    ) -> AsyncIterator[job_pb2.JobEvent]:
        """Stream events to the end."""
        async for event in self._methods.watch(request):
            yield event

    async def ListQuantizationJobEvents(
        self, request: messages.ListQuantizationJobEventsRequest, context: Any
    ) -> job_pb2.ListJobEventsResponse:
        """List past events."""
        return await self._methods.events(request)

    async def ListQuantizationMethods(
        self, request: messages.ListQuantizationMethodsRequest, context: Any
    ) -> messages.ListQuantizationMethodsResponse:
        """List the methods by name."""
        names, next_token = page_of_names(sorted(METHODS), request.page_size, request.page_token)
        return messages.ListQuantizationMethodsResponse(
            methods=[convert.method_to_proto(METHODS[name]) for name in names], next_page_token=next_token
        )
