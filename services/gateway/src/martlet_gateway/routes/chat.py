"""POST /v1/chat/completions, /v1/completions, /v1/embeddings, and vLLM's routes for models that don't generate: the hot path.

Plain ASGI, no framework: the body is parsed once to learn ``model`` and ``stream`` and travels on as the bytes that
came; each event of the engine goes out as the bytes it sent. The gateway looks into the last one only, to count
``usage``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

import orjson
from martlet.inference.v1 import inference_pb2
from martlet_core.errors import Cancelled, InvalidArgument, MartletError, Unavailable
from martlet_core.rpc.context import call_context
from starlette.types import Receive, Scope, Send

from martlet_gateway.asgi import header, read_body, send_json
from martlet_gateway.errors import envelope_bytes
from martlet_gateway.inference_routes import ROUTES
from martlet_gateway.metrics import Metrics
from martlet_gateway.router import ReplicaStream, Router

log = logging.getLogger(__name__)

_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_DONE = b"data: [DONE]\n\n"
_USAGE = b'"usage"'


@dataclass(slots=True)
class _Timing:
    """Moments of one request by ``time.perf_counter()``: they tell the gateway's own time from the wait for the
    replica.
    """

    arrived: float
    sent: float = 0.0
    answered: float = 0.0

    def overhead(self, now: float) -> float:
        return (self.sent - self.arrived) + (now - self.answered)


class Chat:
    """The ASGI handler of the inference routes.

    Args:
        router: finds the replica.
        metrics: counts.
        max_request_bytes: largest body.
    """

    def __init__(self, router: Router, metrics: Metrics, max_request_bytes: int) -> None:
        self._router = router
        self._metrics = metrics
        self._max_request_bytes = max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. MartletErrors leave only before anything was sent."""
        timing = _Timing(time.perf_counter())
        body = await read_body(scope, receive, self._max_request_bytes)
        request = _parse(ROUTES[scope["path"]], body)
        current = asyncio.current_task()
        assert current is not None
        # The client's going away is the only thing left to receive. It cancels this task wherever it stands: in the
        # queue for a placement, before the first token or between two of them.
        gone = asyncio.ensure_future(receive())
        gone.add_done_callback(lambda done: None if done.cancelled() else current.cancel())
        self._metrics.active.inc()
        try:
            await self._answer(request, scope, send, timing)
        except asyncio.CancelledError:
            if not gone.done() or gone.cancelled():
                raise
            current.uncancel()
            self._metrics.disconnects.inc()
            raise Cancelled("The client went away.") from None
        finally:
            gone.cancel()
            self._metrics.active.dec()

    async def _answer(
        self, request: inference_pb2.CallOpenAIRequest, scope: Scope, send: Send, timing: _Timing
    ) -> None:
        caller = call_context()
        wait_seconds = _wait_seconds(scope)
        timing.sent = time.perf_counter()
        if not request.stream:
            message = await self._router.whole(
                request, tenant=caller.tenant, request_id=caller.request_id, wait_seconds=wait_seconds
            )
            self._answered(timing)
            await self._whole(message, send, timing)
            return
        stream = await self._router.open(
            "CallOpenAI",
            request,
            tenant=caller.tenant,
            request_id=caller.request_id,
            wait_seconds=wait_seconds,
        )
        try:
            self._answered(timing)
            if stream.first.http_status >= 400:
                await self._whole(stream.first, send, timing)
            else:
                await self._stream(stream, send, timing)
        finally:
            stream.close()

    def _answered(self, timing: _Timing) -> None:
        timing.answered = time.perf_counter()
        self._metrics.first_byte_seconds.observe(timing.answered - timing.arrived)

    async def _whole(self, message: inference_pb2.CallOpenAIResponse, send: Send, timing: _Timing) -> None:
        status = message.http_status or 200
        await send_json(send, status, message.data, [self._overhead_header(timing)])
        if status == 200:
            self._count_usage(message.data)

    async def _stream(self, stream: ReplicaStream, send: Send, timing: _Timing) -> None:
        last: bytes = stream.first.data
        await send(
            {"type": "http.response.start", "status": 200, "headers": [*_SSE_HEADERS, self._overhead_header(timing)]}
        )
        await send({"type": "http.response.body", "body": b"data: " + last + b"\n\n", "more_body": True})
        try:
            async for message in stream.rest():
                last = message.data
                await send({"type": "http.response.body", "body": b"data: " + last + b"\n\n", "more_body": True})
        except MartletError as error:
            # Too late for a status: say it in the stream, where the stock client raises on an event with `error`.
            log.warning("stream broke", extra={"code": error.code, "error": error.message})
            event = b"data: " + envelope_bytes(_broken(error)) + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": False})
            return
        await send({"type": "http.response.body", "body": _DONE, "more_body": False})
        self._count_usage(last)

    def _overhead_header(self, timing: _Timing) -> tuple[bytes, bytes]:
        seconds = timing.overhead(time.perf_counter())
        self._metrics.overhead_seconds.observe(seconds)
        return (b"x-martlet-overhead-ms", b"%.3f" % (seconds * 1000))

    def _count_usage(self, data: bytes) -> None:
        if _USAGE not in data:
            return
        try:
            usage = orjson.loads(data).get("usage")
        except (orjson.JSONDecodeError, AttributeError):
            log.warning("the engine's last event is not a JSON object; its usage is not counted")
            return
        if usage:
            self._metrics.prompt_tokens.inc(usage.get("prompt_tokens") or 0)
            self._metrics.completion_tokens.inc(usage.get("completion_tokens") or 0)


def _parse(route: Any, body: bytes) -> inference_pb2.CallOpenAIRequest:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"The body is not valid JSON: {error}.", reason="INVALID_JSON") from error
    if not isinstance(fields, dict):
        raise InvalidArgument("The body must be a JSON object.", reason="INVALID_JSON")
    model, stream = fields.get("model"), fields.get("stream")
    if model is None:
        raise InvalidArgument.field(
            "model", "is required: name a model of GET /v1/models.", reason="MISSING_REQUIRED_PARAMETER"
        )
    if not isinstance(model, str) or not model:
        raise InvalidArgument.field("model", "must be a non-empty string.")
    if not (stream is None or isinstance(stream, bool)):
        raise InvalidArgument.field("stream", "must be true or false.")
    return inference_pb2.CallOpenAIRequest(route=route, model=model, stream=bool(stream), body=body)


def _wait_seconds(scope: Scope) -> float | None:
    """How long the client will wait, less a moment to answer it; None when it doesn't say."""
    value = header(scope, b"x-stainless-read-timeout")
    if value is None:
        return None
    try:
        return max(0.1, float(value) - 1.0)
    except ValueError:
        return None


def _broken(error: MartletError) -> MartletError:
    if error.http_status != 500:
        return error
    return Unavailable(
        "The replica failed in the middle of its answer; what was sent is incomplete.", reason="REPLICA_FAILED"
    )
