"""The gRPC face of the evaluator: validate, convert, call the job service; nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from martlet.common.v1 import job_pb2
from martlet.evaluator.v1 import evaluation_job_pb2, evaluation_service_pb2, evaluation_service_pb2_grpc
from martlet_core.job_methods import JobMethods, page_of_names
from martlet_core.job_resource import spec_to_dict
from martlet_core.job_service import JobService

from martlet_evaluator import convert
from martlet_evaluator.config import parse_evaluation_config
from martlet_evaluator.jobs import Submissions
from martlet_evaluator.suite_options import SUITE_OPTIONS

EVALUATION_SERVICE = "martlet.evaluator.v1.EvaluationService"


class EvaluationServicer(evaluation_service_pb2_grpc.EvaluationServiceServicer):
    """``martlet.evaluator.v1.EvaluationService``.

    Args:
        jobs: the evaluator's jobs.
        submissions: checks what callers ask for.
        queue: queue that jobs wait in.
    """

    def __init__(self, jobs: JobService, submissions: Submissions, queue: str) -> None:
        self._methods = JobMethods(jobs, convert.EVALUATION_JOBS)
        self._submissions = submissions
        self._queue = queue

    async def CreateEvaluationJob(
        self, request: evaluation_service_pb2.CreateEvaluationJobRequest, context: Any
    ) -> evaluation_job_pb2.EvaluationJob:
        """Check everything that asks no model a question, then queue."""
        config = parse_evaluation_config(spec_to_dict(request.evaluation_job.spec))
        return await self._methods.create(
            convert.new_evaluation_job(request, config, self._queue),
            lambda tenant: self._submissions.check(tenant, config),
            validate_only=request.validate_only,
        )

    async def GetEvaluationJob(
        self, request: evaluation_service_pb2.GetEvaluationJobRequest, context: Any
    ) -> evaluation_job_pb2.EvaluationJob:
        """Look one up."""
        return await self._methods.get(request.name)

    async def ListEvaluationJobs(
        self, request: evaluation_service_pb2.ListEvaluationJobsRequest, context: Any
    ) -> evaluation_service_pb2.ListEvaluationJobsResponse:
        """List the tenant's, newest first."""
        jobs, next_token = await self._methods.page(request)
        return evaluation_service_pb2.ListEvaluationJobsResponse(evaluation_jobs=jobs, next_page_token=next_token)

    async def CancelEvaluationJob(
        self, request: evaluation_service_pb2.CancelEvaluationJobRequest, context: Any
    ) -> evaluation_job_pb2.EvaluationJob:
        """Stop for good."""
        return await self._methods.cancel(request.name)

    async def PauseEvaluationJob(
        self, request: evaluation_service_pb2.PauseEvaluationJobRequest, context: Any
    ) -> evaluation_job_pb2.EvaluationJob:
        """Keep the answers so far and give the worker back."""
        return await self._methods.pause(request.name)

    async def ResumeEvaluationJob(
        self, request: evaluation_service_pb2.ResumeEvaluationJobRequest, context: Any
    ) -> evaluation_job_pb2.EvaluationJob:
        """Queue again."""
        return await self._methods.resume(request.name)

    async def WatchEvaluationJob(
        self, request: evaluation_service_pb2.WatchEvaluationJobRequest, context: Any
    ) -> AsyncIterator[job_pb2.JobEvent]:
        """Stream events to the end."""
        async for event in self._methods.watch(request):
            yield event

    async def ListEvaluationJobEvents(
        self, request: evaluation_service_pb2.ListEvaluationJobEventsRequest, context: Any
    ) -> job_pb2.ListJobEventsResponse:
        """List past events."""
        return await self._methods.events(request)

    async def ListEvaluationSuites(
        self, request: evaluation_service_pb2.ListEvaluationSuitesRequest, context: Any
    ) -> evaluation_service_pb2.ListEvaluationSuitesResponse:
        """List the suites by name."""
        names, next_token = page_of_names(sorted(SUITE_OPTIONS), request.page_size, request.page_token)
        return evaluation_service_pb2.ListEvaluationSuitesResponse(
            suites=[convert.suite_to_proto(name) for name in names], next_page_token=next_token
        )
