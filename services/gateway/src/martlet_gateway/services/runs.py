"""``martlet.gateway.v1.RunService``: runs over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from martlet.common.v1 import job_pb2
from martlet.gateway.v1 import run_pb2, run_service_pb2, run_service_pb2_grpc
from martlet_core.job_proto import event_to_proto, states_from_proto
from martlet_core.rpc.context import call_context

from martlet_gateway.runs.convert import bare_id, inputs_of, run_to_proto
from martlet_gateway.runs.service import RunService


class RunServicer(run_service_pb2_grpc.RunServiceServicer):
    """The service on top of ``RunService``."""

    def __init__(self, runs: RunService) -> None:
        self._runs = runs

    async def CreateRun(self, request: run_service_pb2.CreateRunRequest, context: Any) -> run_pb2.Run:
        run = request.run
        view = await self._runs.create(
            call_context().tenant,
            source=run.spec.source,
            inputs=inputs_of(run.spec),
            reuse=run.spec.reuse if run.spec.HasField("reuse") else None,
            display_name=run.display_name,
            labels=dict(run.labels),
            request_id=request.request_id,
            validate_only=request.validate_only,
        )
        return run_to_proto(view)

    async def GetRun(self, request: run_service_pb2.GetRunRequest, context: Any) -> run_pb2.Run:
        return run_to_proto(await self._runs.get(call_context().tenant, bare_id(request.name)))

    async def ListRuns(
        self, request: run_service_pb2.ListRunsRequest, context: Any
    ) -> run_service_pb2.ListRunsResponse:
        views, token = await self._runs.list(
            call_context().tenant,
            states=states_from_proto(request.states),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return run_service_pb2.ListRunsResponse(runs=[run_to_proto(view) for view in views], next_page_token=token)

    async def CancelRun(self, request: run_service_pb2.CancelRunRequest, context: Any) -> run_pb2.Run:
        return run_to_proto(await self._runs.cancel(call_context().tenant, bare_id(request.name)))

    async def PauseRun(self, request: run_service_pb2.PauseRunRequest, context: Any) -> run_pb2.Run:
        return run_to_proto(await self._runs.pause(call_context().tenant, bare_id(request.name)))

    async def ResumeRun(self, request: run_service_pb2.ResumeRunRequest, context: Any) -> run_pb2.Run:
        return run_to_proto(await self._runs.resume(call_context().tenant, bare_id(request.name)))

    async def WatchRun(self, request: run_service_pb2.WatchRunRequest, context: Any) -> AsyncIterator[job_pb2.JobEvent]:
        events = self._runs.watch(call_context().tenant, bare_id(request.name), after=request.after_cursor)
        async for event in events:
            yield event_to_proto(event)

    async def ListRunEvents(
        self, request: run_service_pb2.ListRunEventsRequest, context: Any
    ) -> job_pb2.ListJobEventsResponse:
        events, token = await self._runs.events(
            call_context().tenant, bare_id(request.name), page_size=request.page_size, page_token=request.page_token
        )
        return job_pb2.ListJobEventsResponse(events=[event_to_proto(event) for event in events], next_page_token=token)
