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
from martlet_gateway.replicas import ReplicaRegistry
from martlet_gateway.router import Router
from martlet_gateway.services.paging import paged


class InferenceServicer(inference_service_pb2_grpc.InferenceServiceServicer):
    """The service on top of the router."""

    def __init__(self, router: Router, names: ModelNames, replicas: ReplicaRegistry) -> None:
        self._router = router
        self._names = names
        self._replicas = replicas

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
        """Models over all replicas, each once; those of other tenants are left out."""
        allowed = {model.name for model in await self._names.list(call_context().tenant)}
        served: dict[str, pb.ServedModel] = {}
        for replica in self._replicas.list():
            for model in replica.models:
                known = served.get(model.name)
                if model.name in allowed and (known is None or known.state != pb.MODEL_STATE_READY):
                    served[model.name] = model
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
        """All replicas as one: loads are summed, limits are the largest."""
        replicas = self._replicas.list()
        ready = [r for r in replicas if r.ready and not r.draining]
        return service_pb.ReplicaInfo(
            engine=",".join(sorted({r.engine for r in replicas})),
            ready=bool(ready),
            load=pb.ReplicaLoad(
                active_requests=sum(r.load.active_requests for r in replicas),
                waiting_requests=sum(r.load.waiting_requests for r in replicas),
                kv_cache_usage=max((r.load.kv_cache_usage for r in replicas), default=0.0),
                max_requests=sum(r.load.max_requests for r in ready),
            ),
            max_lora_rank=max((r.max_lora_rank for r in ready), default=0),
        )

    async def _forward(self, method: str, request: Any, context: Any) -> AsyncIterator[Any]:
        caller = call_context()
        remaining = context.time_remaining()
        stream = await self._router.open(
            method,
            request,
            _named(request.model),
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
