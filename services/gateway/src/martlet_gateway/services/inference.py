"""``martlet.inference.v1.InferenceService`` at the gateway: each call goes to the replica that suits it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.empty_pb2 import Empty
from martlet.inference.v1 import inference_pb2 as pb
from martlet.inference.v1 import inference_service_pb2 as service_pb
from martlet.inference.v1 import inference_service_pb2_grpc
from martlet_core.errors import InvalidArgument, NotFound
from martlet_core.rpc.context import call_context

from martlet_gateway.model_names import ModelNames
from martlet_gateway.router import Router
from martlet_gateway.services.paging import paged


class InferenceServicer(inference_service_pb2_grpc.InferenceServiceServicer):
    """The service on top of the router."""

    def __init__(self, router: Router, names: ModelNames) -> None:
        self._router = router
        self._names = names

    async def CallOpenAI(self, request: pb.CallOpenAIRequest, context: Any) -> AsyncIterator[pb.CallOpenAIResponse]:
        if request.route == pb.OPEN_AI_ROUTE_UNSPECIFIED:
            raise InvalidArgument.field("route", "is required.")
        async for message in self._forward("CallOpenAI", request, context):
            yield message

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        async for message in self._forward("Generate", request, context):
            yield message

    async def ListServedModels(
        self, request: service_pb.ListServedModelsRequest, context: Any
    ) -> service_pb.ListServedModelsResponse:
        """Models over all replicas as they are now, each once; those of other tenants are left out."""
        caller = call_context()
        allowed = {model.name for model in await self._names.list(caller.tenant)}
        question = service_pb.ListServedModelsRequest(page_size=1000)
        answers = await self._router.from_all(
            "ListServedModels", question, tenant=caller.tenant, request_id=caller.request_id
        )
        served: dict[str, pb.ServedModel] = {}
        for model in (model for answer in answers for model in answer.models if model.name in allowed):
            known = served.get(model.name)
            if known is None:
                served[model.name] = model
                continue
            known.active_requests += model.active_requests
            if known.state != pb.MODEL_STATE_READY:
                known.state = model.state
        models, token = paged([served[name] for name in sorted(served)], request, lambda model: model.name)
        return service_pb.ListServedModelsResponse(models=models, next_page_token=token)

    async def LoadModel(self, request: service_pb.LoadModelRequest, context: Any) -> pb.ServedModel:
        caller = call_context()
        return await self._router.load(
            _named(request.model),
            tenant=caller.tenant,
            request_id=caller.request_id,
            pin=request.pin,
            wait_seconds=context.time_remaining(),
        )

    async def UnloadModel(self, request: service_pb.UnloadModelRequest, context: Any) -> Empty:
        await self._on_holders("UnloadModel", request)
        return Empty()

    async def PinModel(self, request: service_pb.PinModelRequest, context: Any) -> pb.ServedModel:
        return (await self._on_holders("PinModel", request))[0]

    async def GetReplicaInfo(self, request: service_pb.GetReplicaInfoRequest, context: Any) -> service_pb.ReplicaInfo:
        """All replicas as one: loads and capacities are summed, limits are the largest, words are joined."""
        caller = call_context()
        infos = await self._router.from_all(
            "GetReplicaInfo", request, tenant=caller.tenant, request_id=caller.request_id
        )
        ready = [info for info in infos if info.ready]
        return service_pb.ReplicaInfo(
            engine=",".join(sorted({info.engine for info in infos})),
            engine_version=",".join(sorted({info.engine_version for info in infos})),
            device=",".join(sorted({info.device for info in infos})),
            ready=bool(ready),
            load=pb.ReplicaLoad(
                active_requests=sum(info.load.active_requests for info in infos),
                waiting_requests=sum(info.load.waiting_requests for info in infos),
                kv_cache_usage=max((info.load.kv_cache_usage for info in infos), default=0.0),
                max_requests=sum(info.load.max_requests for info in ready),
            ),
            max_lora_rank=max((info.max_lora_rank for info in ready), default=0),
            max_adapters=sum(info.max_adapters for info in ready),
        )

    async def _forward(self, method: str, request: Any, context: Any) -> AsyncIterator[Any]:
        caller = call_context()
        remaining = context.time_remaining()
        _named(request.model)
        stream = await self._router.open(
            method,
            request,
            tenant=caller.tenant,
            request_id=caller.request_id,
            wait_seconds=remaining,
            timeout_seconds=remaining,
        )
        try:
            yield stream.first
            async for message in stream.rest():
                yield message
        finally:
            stream.close()

    async def _on_holders(self, method: str, request: Any) -> list[Any]:
        caller = call_context()
        _named(request.model)
        done = await self._router.on_holders(method, request, tenant=caller.tenant, request_id=caller.request_id)
        if not done:
            raise NotFound(f"No replica holds `{request.model}`.", reason="MODEL_NOT_LOADED")
        return done


def _named(model: str) -> str:
    if not model:
        raise InvalidArgument.field("model", "is required.")
    return model
