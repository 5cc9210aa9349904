"""Repeated POSTs make one thing.

The stock client sends no idempotency key, and posts again (up to twice) on a time-out, a 409 or a 5xx, marked only by
``x-stainless-retry-count``. So the gateway remembers, for a window, which request id the first attempt of a body got: a
retry of the same tenant, route and body goes on under that id, and the trainer returns the job it made then. Two
deliberate posts of one body are two jobs: both say ``x-stainless-retry-count: 0``. An explicit ``Idempotency-Key``
needs no memory: it *is* the id.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

import redis.asyncio as redis
from martlet_core.errors import InvalidArgument, Unavailable
from martlet_core.ids import new_id
from redis.exceptions import RedisError

_KEY_PREFIX = "martlet:gateway:retry:"
_MAX_KEY_LENGTH = 255


class RetryMemory(Protocol):
    """Short-lived values by key, shared by all gateways of a deployment."""

    async def get(self, key: str) -> str | None:
        """The value; None if there is none or its time is over."""
        ...

    async def put(self, key: str, value: str) -> None:
        """Keep a value for the window."""
        ...


class RedisRetryMemory:
    """Kept in Redis, so that a retry may reach another gateway, or this one after a restart."""

    def __init__(self, client: redis.Redis, window_seconds: float) -> None:
        self._client = client
        self._window_ms = int(window_seconds * 1000)

    async def get(self, key: str) -> str | None:
        """See RetryMemory. Unavailable when Redis doesn't answer."""
        try:
            value = await self._client.get(_KEY_PREFIX + key)
        except RedisError as error:
            raise Unavailable(f"Redis doesn't answer: {error}", retry_after_seconds=1.0) from error
        return value.decode() if isinstance(value, bytes) else value

    async def put(self, key: str, value: str) -> None:
        """See RetryMemory. Unavailable when Redis doesn't answer."""
        try:
            await self._client.set(_KEY_PREFIX + key, value, px=self._window_ms)
        except RedisError as error:
            raise Unavailable(f"Redis doesn't answer: {error}", retry_after_seconds=1.0) from error


class LocalRetryMemory:
    """Kept in this process, the newest ``capacity`` values: for tests and single gateways without Redis."""

    def __init__(self, window_seconds: float = 900.0, capacity: int = 4096) -> None:
        self._window_seconds = window_seconds
        self._capacity = capacity
        self._values: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def get(self, key: str) -> str | None:
        """See RetryMemory."""
        expires, value = self._values.get(key, (0.0, ""))
        return value if expires > time.monotonic() else None

    async def put(self, key: str, value: str) -> None:
        """See RetryMemory."""
        self._values[key] = (time.monotonic() + self._window_seconds, value)
        self._values.move_to_end(key)
        while len(self._values) > self._capacity:
            self._values.popitem(last=False)


def retry_count(headers: Mapping[str, str]) -> int:
    """How often the stock client has tried before; 0 for other clients."""
    text = headers.get("x-stainless-retry-count", "0")
    return int(text) if text.isdecimal() else 0


def digest(*parts: str | bytes) -> str:
    """Hash of a request's parts; their borders count."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()


def explicit_key(headers: Mapping[str, str], tenant: str, route: str) -> str | None:
    """Digest of the ``Idempotency-Key`` header, bound to tenant and route; None without one."""
    key = headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= _MAX_KEY_LENGTH:
        raise InvalidArgument.field("Idempotency-Key", f"must have 1 to {_MAX_KEY_LENGTH} characters.")
    return digest("key", tenant, route, key)


async def request_id_for(memory: RetryMemory, headers: Mapping[str, str], tenant: str, route: str, body: bytes) -> str:
    """The request id to create something under: that of the first attempt for a retry, else a new one (see the module's
    text).
    """
    key = explicit_key(headers, tenant, route)
    if key is not None:
        return f"idem-{key[:48]}"
    body_key = digest("body", tenant, route, body)
    if retry_count(headers) > 0:
        known = await memory.get(body_key)
        if known is not None:
            return known
    request_id = f"rest-{new_id()}"
    await memory.put(body_key, request_id)
    return request_id
