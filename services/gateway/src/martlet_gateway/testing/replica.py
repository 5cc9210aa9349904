"""What tests need beside the real parts: replicas that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from martlet.gateway.v1 import replica_pb2
from martlet.inference.v1 import inference_pb2, inference_service_pb2_grpc
from martlet_core.errors import MartletError, Unavailable
from martlet_core.rpc.server import GrpcServer, Service

READY = inference_pb2.MODEL_STATE_READY


class ScriptedReplica(inference_service_pb2_grpc.InferenceServiceServicer):
    """A replica that does what it is told: fails, hangs, or answers with its own name.

    Attributes:
        error: what every call ends with.
        errors: what the next calls for an answer end with, each once.
        load_error: what LoadModel ends with.
        answer: what a call that isn't streamed answers; its own name unless set.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0
        self.loads: list[str] = []
        self.error: MartletError | None = None
        self.errors: list[MartletError] = []
        self.load_error: MartletError | None = None
        self.answer = b'{"from": "%s"}' % name.encode()
        self.break_after = -1
        self.hang_after = -1
        self.server: GrpcServer | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def CallOpenAI(self, request: Any, context: Any) -> AsyncIterator[inference_pb2.CallOpenAIResponse]:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        if self.error is not None:
            raise self.error
        await self.gate.wait()
        if not request.stream:
            yield inference_pb2.CallOpenAIResponse(data=self.answer, http_status=200)
            return
        for index in range(3):
            if index == self.break_after:
                raise Unavailable("the engine died")
            if index == self.hang_after:
                await asyncio.Event().wait()
            yield inference_pb2.CallOpenAIResponse(data=b'{"n": %d}' % index, http_status=0 if index else 200)

    async def LoadModel(self, request: Any, context: Any) -> inference_pb2.ServedModel:
        self.loads.append(request.model)
        await self.gate.wait()
        error = self.load_error or self.error
        if error is not None:
            raise error
        kind = inference_pb2.MODEL_KIND_ADAPTER if request.model.startswith("ft:") else inference_pb2.MODEL_KIND_WHOLE
        return inference_pb2.ServedModel(name=request.model, kind=kind, state=READY)


@asynccontextmanager
async def scripted(gateway: Any, name: str, **fields: Any) -> AsyncIterator[ScriptedReplica]:
    """A scripted replica, registered with a gateway (whose ``GatewayServer`` is its ``server``).

    Args:
        fields: those of ``Replica``; ``models`` are names of whole models that it holds, ``base`` unless given.
    """
    servicer = ScriptedReplica(name)
    add = inference_service_pb2_grpc.add_InferenceServiceServicer_to_server
    server = GrpcServer("127.0.0.1:0", [Service(add, servicer, "martlet.inference.v1.InferenceService")])
    servicer.server = server
    port = await server.start()
    models = fields.pop("models", None)
    replica = replica_pb2.Replica(address=f"127.0.0.1:{port}", engine="script", ready=True, max_lora_rank=16, **fields)
    for model in ["base"] if models is None else models:
        replica.models.add(name=model, kind=inference_pb2.MODEL_KIND_WHOLE, state=READY)
    await gateway.server.context.replicas.register(replica)
    try:
        yield servicer
    finally:
        await server.stop(0)
