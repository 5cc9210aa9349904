"""gRPC clients of the services behind the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from martlet.common.v1 import job_pb2
from martlet.evaluator.v1 import evaluation_service_pb2_grpc
from martlet.inference.v1 import inference_pb2, inference_service_pb2_grpc
from martlet.quantizer.v1 import quantization_service_pb2_grpc
from martlet.trainer.v1 import merge_service_pb2_grpc, training_service_pb2_grpc
from martlet_core.errors import Unimplemented
from martlet_core.rpc.client import call_metadata, error_from_rpc, open_channel, timeout_seconds

from martlet_gateway.settings import GatewaySettings

_CREATE_SECONDS = 300.0


class StageClient:
    """The services of one job stage. Tenant and request id of a call are those of the request being served.

    Args:
        stage: its name, for messages (``trainer``).
        address: where it listens; empty where the deployment has no such stage.
        stubs: generated stub by the name that calls use (``training``).
        internal_token: shown on every call.
        timeout: deadline of unary calls in seconds.
    """

    def __init__(
        self,
        stage: str,
        address: str,
        stubs: Mapping[str, Callable[[grpc.aio.Channel], Any]],
        *,
        internal_token: str = "",
        timeout: float = 30.0,
    ) -> None:
        self.stage = stage
        self.address = address
        self.internal_token = internal_token
        self._timeout = timeout
        self._channel = open_channel(address) if address else None
        self._stubs = {name: make(self._channel) for name, make in stubs.items()} if self._channel else {}

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel to the stage. Unimplemented where the deployment has no such stage."""
        if self._channel is None:
            raise Unimplemented(
                f"This deployment has no {self.stage}; its operator adds one with MARTLET_{self.stage.upper()}_ADDRESS.",
                reason="STAGE_NOT_DEPLOYED",
            )
        return self._channel

    @property
    def deployed(self) -> bool:
        """Whether the deployment has this stage."""
        return self._channel is not None

    async def call(self, service: str, method: str, request: Message) -> Any:
        """Call a unary method; its errors come as MartletErrors."""
        metadata = call_metadata(internal_token=self.internal_token)
        # A new job's data sets are read through before it is accepted; a large one takes its time.
        limit = max(self._timeout, _CREATE_SECONDS) if method.startswith("Create") else self._timeout
        try:
            return await self._method(service, method)(request, metadata=metadata, timeout=timeout_seconds(limit))
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def watch(self, service: str, method: str, request: Message) -> AsyncIterator[job_pb2.JobEvent]:
        """Stream a job's events; leaving the iteration cancels the call."""
        call = self._method(service, method)(request, metadata=call_metadata(internal_token=self.internal_token))
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close(None)

    def _method(self, service: str, method: str) -> Any:
        assert self.channel is not None  # raises where the stage isn't deployed
        return getattr(self._stubs[service], method)


@dataclass(frozen=True)
class Stages:
    """The job stages behind the gateway."""

    trainer: StageClient
    quantizer: StageClient
    evaluator: StageClient

    @classmethod
    def connect(cls, settings: GatewaySettings) -> Stages:
        """Open a channel to each."""

        def client(stage: str, address: str, **stubs: Callable[[grpc.aio.Channel], Any]) -> StageClient:
            token, timeout = settings.internal_token, settings.stage_timeout_seconds
            return StageClient(stage, address, stubs, internal_token=token, timeout=timeout)

        return cls(
            trainer=client(
                "trainer",
                settings.trainer_address,
                training=training_service_pb2_grpc.TrainingServiceStub,
                merge=merge_service_pb2_grpc.MergeServiceStub,
            ),
            quantizer=client(
                "quantizer",
                settings.quantizer_address,
                quantization=quantization_service_pb2_grpc.QuantizationServiceStub,
            ),
            evaluator=client(
                "evaluator", settings.evaluator_address, evaluation=evaluation_service_pb2_grpc.EvaluationServiceStub
            ),
        )

    def all(self) -> tuple[StageClient, ...]:
        """Those that the deployment has."""
        return tuple(stage for stage in (self.trainer, self.quantizer, self.evaluator) if stage.deployed)

    async def close(self) -> None:
        """Close all channels."""
        for stage in self.all():
            await stage.close()


#: A replica that comes back on its address must be reached at once, so the back-off stays short. The router repeats calls
#: itself, on another replica; gRPC's own retries would only cost time (a tenth of a millisecond a call).
_REPLICA_OPTIONS = (
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
    ("grpc.service_config", "{}"),
)


class ReplicaStub:
    """The calls that the gateway makes on a replica.

    Attributes:
        service: all methods, as generated.
        whole: ``CallOpenAI`` for answers that aren't streamed. They are one message, so a unary call takes them, which
            costs the gateway half of what a stream does.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.service = inference_service_pb2_grpc.InferenceServiceStub(channel)
        self.whole = channel.unary_unary(
            "/martlet.inference.v1.InferenceService/CallOpenAI",
            request_serializer=inference_pb2.CallOpenAIRequest.SerializeToString,
            response_deserializer=inference_pb2.CallOpenAIResponse.FromString,
        )


class InferenceChannels:
    """One channel a replica address, opened at first use. All streams to a replica share it."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[str, ReplicaStub] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def stub(self, address: str) -> ReplicaStub:
        """The calls on a replica."""
        stub = self._stubs.get(address)
        if stub is None:
            channel = self._channels[address] = open_channel(address, options=_REPLICA_OPTIONS)
            stub = self._stubs[address] = ReplicaStub(channel)
        return stub

    def forget(self, live: set[str]) -> None:
        """Close the channels of replicas that are gone; streams that still run on them may end first."""
        for address in [a for a in self._channels if a not in live]:
            del self._stubs[address]
            task = asyncio.ensure_future(self._channels.pop(address).close(600.0))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all channels, cutting what still runs."""
        for task in self._closing:
            task.cancel()
        for channel in self._channels.values():
            await channel.close(None)
        self._channels.clear()
        self._stubs.clear()
