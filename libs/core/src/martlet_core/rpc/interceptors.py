"""The server interceptor: call context, internal token, errors as status, one log line a call."""

from __future__ import annotations

import asyncio
import hmac
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from martlet_core.errors import Internal, InvalidArgument, MartletError, Unauthenticated, Unavailable, Unimplemented
from martlet_core.ids import NAME_PATTERN, REQUEST_ID_PATTERN, new_id
from martlet_core.rpc.client import error_from_rpc
from martlet_core.rpc.context import (
    DEFAULT_TENANT,
    INTERNAL_TOKEN_KEY,
    REQUEST_ID_KEY,
    TENANT_KEY,
    CallContext,
    set_call_context,
)
from martlet_core.rpc.status import STATUS_DETAILS_KEY, grpc_code, to_status

log = logging.getLogger(__name__)

#: Services that may be called without the internal token: probes and tools have none.
OPEN_SERVICES = frozenset({"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"})

#: Given the full method name and the call's metadata, returns the tenant or raises Unauthenticated or PermissionDenied.
Authenticate = Callable[[str, Mapping[str, str]], Awaitable[str]]


@dataclass(slots=True)
class _Call:
    method: str
    service: str
    request_id: str
    started: float


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of a server.

    Without ``authenticate`` the tenant is what the caller's metadata says: right between our own services, which show
    one another the internal token. A server that outsiders reach passes ``authenticate``, and the metadata's tenant is
    then ignored.
    """

    def __init__(self, *, internal_token: str = "", authenticate: Authenticate | None = None) -> None:
        self._token = internal_token.encode()
        self._authenticate = authenticate
        self._wrapped: dict[str, tuple[Any, grpc.RpcMethodHandler]] = {}
        self._watches: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def end_watches(self) -> None:
        """End the ``Watch...`` streams with UNAVAILABLE: clients resume elsewhere and don't hold up the stop."""
        self._stopping = True
        for task in tuple(self._watches):
            task.cancel()

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Called by gRPC for each call; the wrapped handler is made once a method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method: str = handler_call_details.method
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = (handler, self._wrap(method, handler))
            self._wrapped[method] = known
        return known[1]

    def _wrap(self, method: str, handler: Any) -> grpc.RpcMethodHandler:
        service = method.split("/")[1]
        decode = handler.request_deserializer
        codec = {
            "request_deserializer": decode if decode is None or handler.request_streaming else _careful(decode),
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(self._streaming(method, service, behaviour), **codec)
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(self._unary(method, service, behaviour), **codec)

    def _unary(self, method: str, service: str, behaviour: Any) -> Any:
        is_async = inspect.iscoroutinefunction(behaviour)

        async def call(request: Any, context: Any) -> Any:
            record = _Call(method, service, "", time.perf_counter())
            try:
                await self._enter(record, context)
                _refuse_malformed(request)
                if is_async:
                    response = await behaviour(request, context)
                else:
                    response = await asyncio.to_thread(behaviour, request, context)
                    if inspect.isawaitable(response):
                        response = await response
            except BaseException as error:
                await self._fail(record, context, error)
                raise
            _log_end(record, context, "OK")
            return response

        return call

    def _streaming(self, method: str, service: str, behaviour: Any) -> Any:
        is_generator = inspect.isasyncgenfunction(behaviour)
        is_async = inspect.iscoroutinefunction(behaviour)
        is_watch = method.rsplit("/", 1)[-1].startswith("Watch")

        async def call(request: Any, context: Any) -> None:
            record = _Call(method, service, "", time.perf_counter())
            task = asyncio.current_task()
            try:
                await self._enter(record, context)
                _refuse_malformed(request)
                if is_watch and task is not None:
                    if self._stopping:
                        raise _resume_elsewhere()
                    self._watches.add(task)
                if is_generator:
                    await _pump(behaviour(request, context), context)
                elif is_async:
                    await behaviour(request, context)  # writes by itself
                else:
                    await _pump(await asyncio.to_thread(behaviour, request, context), context)
            except asyncio.CancelledError as error:
                if not (self._stopping and task in self._watches and task is not None):
                    await self._fail(record, context, error)
                    raise
                task.uncancel()
                await self._fail(record, context, _resume_elsewhere())
            except BaseException as error:
                await self._fail(record, context, error)
                raise
            finally:
                if is_watch and task is not None:
                    self._watches.discard(task)
            _log_end(record, context, "OK")

        return call

    async def _enter(self, record: _Call, context: Any) -> None:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        request_id = metadata.get(REQUEST_ID_KEY, "")
        record.request_id = request_id if REQUEST_ID_PATTERN.fullmatch(request_id) else new_id()
        context.set_trailing_metadata(((REQUEST_ID_KEY, record.request_id),))
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        set_call_context(CallContext(DEFAULT_TENANT, record.request_id, deadline))
        if record.service in OPEN_SERVICES:
            return
        if self._token and not hmac.compare_digest(metadata.get(INTERNAL_TOKEN_KEY, "").encode(), self._token):
            raise Unauthenticated(
                f"The call needs the deployment's internal token in the metadata {INTERNAL_TOKEN_KEY}; "
                "set MARTLET_INTERNAL_TOKEN to the same value for all services.",
                reason="INTERNAL_TOKEN_REQUIRED",
            )
        if self._authenticate is not None:
            tenant = await self._authenticate(record.method, metadata)
        else:
            tenant = metadata.get(TENANT_KEY) or DEFAULT_TENANT
            if not NAME_PATTERN.fullmatch(tenant):
                raise InvalidArgument(
                    f"The metadata {TENANT_KEY} must match {NAME_PATTERN.pattern}.", reason="INVALID_TENANT"
                )
        set_call_context(CallContext(tenant, record.request_id, deadline))

    async def _fail(self, record: _Call, context: Any, error: BaseException) -> None:
        """Log a failed call and abort it with a status. Returns only for a cancelled or already aborted call."""
        if isinstance(error, asyncio.CancelledError):
            _log_end(record, context, "CANCELLED")
            return
        if isinstance(error, grpc.aio.AbortError):
            _log_end(record, context, "ABORTED_BY_METHOD")
            return
        if not isinstance(error, Exception):  # the process is ending
            return
        known = _known_error(error, record)
        _log_end(record, context, known.code, error=known)
        await context.abort(
            grpc_code(known),
            to_status(known).message,
            (
                (REQUEST_ID_KEY, record.request_id),
                (STATUS_DETAILS_KEY, to_status(known).SerializeToString()),
            ),
        )


@dataclass(slots=True)
class _Malformed:
    """What stands for a request whose bytes aren't the method's message."""

    reason: str


def _careful(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """gRPC answers INTERNAL when decoding raises; the fault is the caller's, so the method's wrapper says it."""

    def decoded(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError as error:
            return _Malformed(str(error))

    return decoded


def _refuse_malformed(request: Any) -> None:
    if isinstance(request, _Malformed):
        raise InvalidArgument(f"The request can't be decoded: {request.reason}.", reason="MALFORMED_REQUEST")


async def _pump(messages: Any, context: Any) -> None:
    """Write what an async generator yields; close it at once when the client goes away, so that its work stops."""
    if not hasattr(messages, "__aiter__"):
        raise TypeError("a streaming method must be an async generator")
    write = context.write
    async with aclosing(messages):
        async for message in messages:
            await write(message)


def _known_error(error: Exception, record: _Call) -> MartletError:
    if isinstance(error, MartletError):
        return error
    if isinstance(error, grpc.RpcError):  # from a call this method made: its answer is ours
        return error_from_rpc(error)
    if isinstance(error, NotImplementedError):
        return Unimplemented(f"{record.method} is not implemented here.")
    log.error("%s failed", record.method, exc_info=error)
    return Internal(f"Internal error; the service's log has it under request id {record.request_id}.")


def _resume_elsewhere() -> Unavailable:
    return Unavailable(
        "The server is stopping; resume from the last cursor.", reason="SERVER_STOPPING", retry_after_seconds=0.0
    )


def _log_end(record: _Call, context: Any, code: str, error: MartletError | None = None) -> None:
    level = logging.DEBUG if record.service in OPEN_SERVICES else logging.INFO
    if not log.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "method": record.method,
        "code": code,
        "duration_ms": round((time.perf_counter() - record.started) * 1000, 2),
        "peer": context.peer(),
    }
    if error is not None:
        fields["reason"], fields["error"] = error.reason, error.message
    log.log(level, "rpc", extra=fields)
