"""Passes every method of a job stage's package on to the stage, as bytes: a new method there needs no code here.

A unary answer and a stream of one message look the same on the wire, so each method is served and called as a server
stream. Client streams aren't passed on; no stage has any.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from martlet_core.rpc.client import call_metadata

from martlet_gateway.clients import StageClient


class StageProxy(grpc.GenericRpcHandler):
    """Answers for every method of the stage's package. The tenant that the call goes on with is the key's."""

    def __init__(self, stage: StageClient) -> None:
        self._stage = stage
        self._methods = re.compile(rf"/martlet\.{stage.stage}\.v1\.[A-Za-z]+Service/[A-Za-z]+")
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a method; one a method, since the interceptor keeps what it wrapped around it."""
        method = handler_call_details.method  # type: ignore[attr-defined]
        handler = self._handlers.get(method)
        if handler is None and self._methods.fullmatch(method) and len(self._handlers) < 1000:
            handler = self._handlers[method] = grpc.unary_stream_rpc_method_handler(self._behaviour(method))
        return handler

    def _behaviour(self, method: str) -> Any:
        async def call(request: bytes, context: Any) -> AsyncIterator[bytes]:
            start = self._stage.channel.unary_stream(method)
            metadata = call_metadata(internal_token=self._stage.internal_token)
            answer = start(request, metadata=metadata, timeout=context.time_remaining())
            try:
                async for message in answer:
                    yield message
            finally:
                answer.cancel()

        return call


def add_proxy_to_server(stage: StageClient, server: Any) -> None:
    """As the generated ``add_...Servicer_to_server``, for ``martlet_core.rpc.server.Service``."""
    server.add_generic_rpc_handlers((StageProxy(stage),))
