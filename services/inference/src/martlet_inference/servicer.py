"""``martlet.inference.v1.InferenceService``: validate, convert, call the data plane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.empty_pb2 import Empty
from martlet.inference.v1 import inference_pb2 as pb
from martlet.inference.v1 import inference_service_pb2 as service_pb
from martlet.inference.v1 import inference_service_pb2_grpc as service_grpc
from martlet_core.errors import InvalidArgument
from martlet_core.rpc.context import call_context

from martlet_inference import convert
from martlet_inference.dataplane import DataPlane
from martlet_inference.held import Held
from martlet_inference.models import DEFAULT_DRAIN_SECONDS

SERVICE_NAME = "martlet.inference.v1.InferenceService"


class InferenceServicer(service_grpc.InferenceServiceServicer):
    """The service on top of a data plane."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def CallOpenAI(self, request: pb.CallOpenAIRequest, context: Any) -> AsyncIterator[pb.CallOpenAIResponse]:
        caller = call_context()
        call = convert.openai_call(request, caller.request_id)
        async with self._plane.answer(call, model=request.model, tenant=caller.tenant) as reply:
            http_status = reply.http_status
            async for chunk in reply.chunks:
                if http_status:
                    yield pb.CallOpenAIResponse(data=chunk, http_status=http_status)
                    http_status = 0
                else:
                    yield pb.CallOpenAIResponse(data=chunk)

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        caller = call_context()
        call = convert.generate_call(request, caller.request_id)
        responses = convert.GenerateResponses()
        async with self._plane.answer(call, model=request.model, tenant=caller.tenant) as reply:
            async for chunk in reply.chunks:
                if reply.http_status != 200:
                    raise convert.engine_error(reply.http_status, chunk)
                part = responses.part(chunk)
                if part is not None:
                    yield part
        yield responses.last()

    async def ListServedModels(
        self, request: service_pb.ListServedModelsRequest, context: Any
    ) -> service_pb.ListServedModelsResponse:
        tenant = call_context().tenant
        models = [self._served(held) for held in self._plane.pool.held() if held.visible_to(tenant)]
        return convert.page(models, request)

    async def LoadModel(self, request: service_pb.LoadModelRequest, context: Any) -> pb.ServedModel:
        drain_seconds = DEFAULT_DRAIN_SECONDS
        if request.HasField("drain_timeout"):
            drain_seconds = request.drain_timeout.ToNanoseconds() / 1e9
            if drain_seconds < 0:
                raise InvalidArgument.field("drain_timeout", "must not be negative")
        held = await self._plane.pool.load(
            _named(request.model), call_context().tenant, pin=request.pin, drain_seconds=drain_seconds
        )
        return self._served(held)

    async def UnloadModel(self, request: service_pb.UnloadModelRequest, context: Any) -> Empty:
        await self._plane.pool.unload(_named(request.model), call_context().tenant)
        return Empty()

    async def PinModel(self, request: service_pb.PinModelRequest, context: Any) -> pb.ServedModel:
        return self._served(self._plane.pool.pin(_named(request.model), call_context().tenant, request.pinned))

    async def GetReplicaInfo(self, request: service_pb.GetReplicaInfoRequest, context: Any) -> service_pb.ReplicaInfo:
        engine = self._plane.engine
        return service_pb.ReplicaInfo(
            engine=engine.name,
            engine_version=engine.version,
            ready=self._plane.ready,
            load=convert.replica_load(await self._plane.load()),
            max_lora_rank=engine.max_lora_rank,
            max_adapters=engine.max_adapters,
            device=engine.device,
        )

    def _served(self, held: Held) -> pb.ServedModel:
        return convert.served_model(held, self._plane.pool, self._plane.engine.context_length)


def _named(model: str) -> str:
    if not model:
        raise InvalidArgument.field("model", "must name a model")
    return model
