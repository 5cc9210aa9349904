"""Where registered replicas are kept: values with a lease, in Redis so that every gateway sees them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import redis.asyncio as redis
from martlet_core.errors import NotFound, Unavailable
from redis.exceptions import RedisError

T = TypeVar("T")

_IDS_KEY = "martlet:gateway:replicas"
_REPLICA_PREFIX = "martlet:gateway:replica:"
_ADDRESS_KEY = "martlet:gateway:replica-addresses"


def lease_lapsed(replica_id: str) -> NotFound:
    """What a replica is told whose lease has lapsed."""
    return NotFound(
        f"replicas/{replica_id} is not registered, or its lease has lapsed. Register again.", reason="REPLICA_NOT_FOUND"
    )


class ReplicaStore(Protocol):
    """Replicas by id. Raises Unavailable when the store doesn't answer."""

    async def put(self, replica_id: str, address: str, value: bytes, lease_seconds: float) -> None:
        """Make a replica known; one of the same address goes."""
        ...

    async def renew(self, replica_id: str, value: bytes, lease_seconds: float) -> None:
        """Replace the value and renew the lease. NotFound if it has lapsed."""
        ...

    async def remove(self, replica_id: str) -> None:
        """Forget a replica; no error if it isn't known."""
        ...

    async def all(self) -> Sequence[bytes]:
        """Values of the replicas whose lease holds, ordered by id."""
        ...


class RedisReplicaStore:
    """A key with a time to live per replica, a set of their ids, and a hash address -> id."""

    def __init__(self, client: redis.Redis) -> None:
        self._client: Any = client

    async def put(self, replica_id: str, address: str, value: bytes, lease_seconds: float) -> None:
        """See ReplicaStore."""

        async def run() -> None:
            old = await self._client.hget(_ADDRESS_KEY, address)
            pipe = self._client.pipeline(transaction=True)
            if old is not None and _text(old) != replica_id:
                pipe.delete(_REPLICA_PREFIX + _text(old))
                pipe.srem(_IDS_KEY, old)
            pipe.hset(_ADDRESS_KEY, address, replica_id)
            pipe.set(_REPLICA_PREFIX + replica_id, value, px=int(lease_seconds * 1000))
            pipe.sadd(_IDS_KEY, replica_id)
            await pipe.execute()

        await _guard(run)

    async def renew(self, replica_id: str, value: bytes, lease_seconds: float) -> None:
        """See ReplicaStore."""

        async def run() -> bool:
            return bool(
                await self._client.set(_REPLICA_PREFIX + replica_id, value, px=int(lease_seconds * 1000), xx=True)
            )

        if not await _guard(run):
            raise lease_lapsed(replica_id)

    async def remove(self, replica_id: str) -> None:
        """See ReplicaStore."""

        async def run() -> None:
            pipe = self._client.pipeline(transaction=True)
            pipe.delete(_REPLICA_PREFIX + replica_id)
            pipe.srem(_IDS_KEY, replica_id)
            await pipe.execute()

        await _guard(run)

    async def all(self) -> Sequence[bytes]:
        """See ReplicaStore. Ids whose lease has lapsed leave the set here."""

        async def run() -> list[bytes]:
            ids = sorted(_text(i) for i in await self._client.smembers(_IDS_KEY))
            if not ids:
                return []
            values = await self._client.mget([_REPLICA_PREFIX + i for i in ids])
            lapsed = [i for i, value in zip(ids, values, strict=True) if value is None]
            if lapsed:
                await self._client.srem(_IDS_KEY, *lapsed)
            return [value for value in values if value is not None]

        return await _guard(run)


class LocalReplicaStore:
    """The same in this process, for tests and single gateways without Redis."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[str, bytes, float]] = {}

    async def put(self, replica_id: str, address: str, value: bytes, lease_seconds: float) -> None:
        """See ReplicaStore."""
        self._values = {i: v for i, v in self._values.items() if v[0] != address}
        self._values[replica_id] = (address, value, time.monotonic() + lease_seconds)

    async def renew(self, replica_id: str, value: bytes, lease_seconds: float) -> None:
        """See ReplicaStore."""
        address, _, expires = self._values.get(replica_id, ("", b"", 0.0))
        if expires <= time.monotonic():
            raise lease_lapsed(replica_id)
        self._values[replica_id] = (address, value, time.monotonic() + lease_seconds)

    async def remove(self, replica_id: str) -> None:
        """See ReplicaStore."""
        self._values.pop(replica_id, None)

    async def all(self) -> Sequence[bytes]:
        """See ReplicaStore."""
        now = time.monotonic()
        self._values = {i: v for i, v in self._values.items() if v[2] > now}
        return [value for _, (_, value, _) in sorted(self._values.items())]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


async def _guard(run: Callable[[], Awaitable[T]]) -> T:
    try:
        return await run()
    except (RedisError, OSError) as error:
        raise Unavailable(
            f"Redis doesn't answer: {error}", reason="REDIS_UNAVAILABLE", retry_after_seconds=1.0
        ) from error
