"""Small ASGI helpers: reading a bounded body, answering, and refusing a body without reading it all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from martlet_core.errors import Cancelled, MartletError
from starlette.types import Message, Receive, Scope, Send

from martlet_gateway.errors import TOO_LARGE, envelope_bytes, http_status, retry_headers, too_large

_JSON = (b"content-type", b"application/json")


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return value
    return None


def text_headers(scope: Scope) -> Mapping[str, str]:
    """All headers as text, lower-case names."""
    return {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}


def declared_length(scope: Scope) -> int | None:
    """``content-length``; None for a chunked body or nonsense."""
    value = header(scope, b"content-length")
    return int(value) if value is not None and value.isdigit() else None


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """The whole body.

    Raises:
        ResourceExhausted: it is larger than ``limit_bytes`` (413).
        Cancelled: the client went away before it ended.
    """
    length = declared_length(scope)
    if length is not None and length > limit_bytes:
        raise _body_too_large(limit_bytes)
    message = await receive()
    body = message.get("body", b"")
    if not message.get("more_body", False) and message["type"] == "http.request":
        if len(body) > limit_bytes:
            raise _body_too_large(limit_bytes)
        return body
    parts, size = [body], len(body)
    async for part in _chunks(message, receive):
        parts.append(part)
        size += len(part)
        if size > limit_bytes:
            raise _body_too_large(limit_bytes)
    return b"".join(parts)


def has_body(scope: Scope) -> bool:
    """True for a request that brings a body, or may bring one."""
    return bool(declared_length(scope)) or header(scope, b"transfer-encoding") is not None


def replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives a body that was read already, then what comes after it."""
    pending = [body]

    async def receive_again() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return receive_again


def _body_too_large(limit_bytes: int) -> MartletError:
    remedy = "Send less, or have the operator raise MARTLET_MAX_REQUEST_BYTES."
    return too_large("The request body", limit_bytes, remedy)


async def _chunks(message: Message, receive: Receive) -> AsyncIterator[bytes]:
    while True:
        if message["type"] == "http.disconnect":
            raise Cancelled("The client went away before its request ended.")
        if not message.get("more_body", False):
            return
        message = await receive()
        yield message.get("body", b"")


async def send_json(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    """Answer with JSON bytes."""
    all_headers = [_JSON, (b"content-length", b"%d" % len(body)), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(receive: Receive, send: Send, error: MartletError, lingering_seconds: float = 2.0) -> None:
    """Answer with OpenAI's envelope of an error.

    A body that is too large is not read: the answer goes out at once and the connection closes, but not before what the
    client is still sending was thrown away for a moment. Otherwise the kernel would reset the connection and the client
    never see the answer.
    """
    body = envelope_bytes(error)
    headers = [(k.encode(), v.encode()) for k, v in retry_headers(error).items()]
    if error.reason != TOO_LARGE:
        await send_json(send, http_status(error), body, headers)
        return
    headers += [_JSON, (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": http_status(error), "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await discard(receive, lingering_seconds)
    await send({"type": "http.response.body", "body": b""})


async def discard(receive: Receive, seconds: float) -> None:
    """Read and throw away the rest of a body, for at most ``seconds``."""
    try:
        async with asyncio.timeout(seconds):
            message: dict[str, Any] = {"more_body": True}
            while message.get("more_body", False):
                message = dict(await receive())
    except TimeoutError:
        return  # the rest meets a closed connection
