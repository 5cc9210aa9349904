"""Calls on the stages' services on behalf of a run's tenant."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from martlet.common.v1 import job_pb2
from martlet_core.errors import MartletError
from martlet_core.rpc.client import call_metadata, error_from_rpc, open_channel, timeout_seconds

#: A new job's data sets are read through before it is accepted.
_CREATE_SECONDS = 300.0
#: Errors that another try may mend: the step waits instead of failing.
PASSING_CODES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED", "INTERNAL"})


def is_passing(error: MartletError) -> bool:
    """Whether trying again later may help."""
    return error.code in PASSING_CODES


class Stages:
    """Channels to the stages' gRPC services. Tenant and request id of a call are those of the context.

    Args:
        addresses: by stage (``trainer``, ``quantizer``, ``evaluator``).
        internal_token: shown on every call.
        timeout: deadline of unary calls in seconds.
    """

    def __init__(self, addresses: Mapping[str, str], *, internal_token: str = "", timeout: float = 30.0) -> None:
        self._addresses = dict(addresses)
        self._internal_token = internal_token
        self._timeout = timeout
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[Any, Any] = {}

    async def call(self, stage: str, stub: Any, method: str, request: Message) -> Any:
        """Call a unary method; its errors come as MartletErrors. ``stub`` is the generated class."""
        limit = max(self._timeout, _CREATE_SECONDS) if method.startswith("Create") else self._timeout
        metadata = call_metadata(internal_token=self._internal_token)
        try:
            return await getattr(self._stub(stage, stub), method)(
                request, metadata=metadata, timeout=timeout_seconds(limit)
            )
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def watch(self, stage: str, stub: Any, method: str, request: Message) -> AsyncIterator[job_pb2.JobEvent]:
        """Stream a job's events; leaving the iteration cancels the call."""
        call = getattr(self._stub(stage, stub), method)(
            request, metadata=call_metadata(internal_token=self._internal_token)
        )
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels.values():
            await channel.close(None)
        self._channels.clear()
        self._stubs.clear()

    def _stub(self, stage: str, stub: Any) -> Any:
        made = self._stubs.get(stub)
        if made is None:
            channel = self._channels.get(stage)
            if channel is None:
                channel = self._channels[stage] = open_channel(self._addresses[stage])
            made = self._stubs[stub] = stub(channel)
        return made
