"""gRPC clients of the services behind the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from martlet.common.v1 import job_pb2
from martlet.inference.v1 import inference_pb2, inference_service_pb2_grpc
from martlet.trainer.v1 import merge_service_pb2_grpc, training_service_pb2_grpc
from martlet_core.rpc.client import call_metadata, error_from_rpc, open_channel, timeout_seconds

_CREATE_SECONDS = 300.0


class TrainerClient:
    """The trainer's services. Tenant and request id of a call are those of the request being served.

    Args:
        address: where the trainer listens.
        internal_token: shown on every call.
        timeout: deadline of unary calls in seconds.
    """

    def __init__(self, address: str, *, internal_token: str = "", timeout: float = 30.0) -> None:
        self.address = address
        self.internal_token = internal_token
        self._timeout = timeout
        self.channel: grpc.aio.Channel = open_channel(address)
        self._stubs = {
            "training": training_service_pb2_grpc.TrainingServiceStub(self.channel),
            "merge": merge_service_pb2_grpc.MergeServiceStub(self.channel),
        }

    async def training(self, method: str, request: Message) -> Any:
        """Call a unary method of TrainingService; its errors come as MartletErrors."""
        return await self._call("training", method, request)

    async def merging(self, method: str, request: Message) -> Any:
        """Call a unary method of MergeService; its errors come as MartletErrors."""
        return await self._call("merge", method, request)

    async def _call(self, service: str, method: str, request: Message) -> Any:
        metadata = call_metadata(internal_token=self.internal_token)
        # A new job's data sets are read through before it is accepted; a large one takes its time.
        limit = max(self._timeout, _CREATE_SECONDS) if method.startswith("Create") else self._timeout
        try:
            return await getattr(self._stubs[service], method)(
                request, metadata=metadata, timeout=timeout_seconds(limit)
            )
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def watch(self, service: str, method: str, request: Message) -> AsyncIterator[job_pb2.JobEvent]:
        """Stream a job's events; leaving the iteration cancels the call. ``service`` is ``training`` or ``merge``."""
        call = getattr(self._stubs[service], method)(
            request, metadata=call_metadata(internal_token=self.internal_token)
        )
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the channel."""
        await self.channel.close(None)


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
