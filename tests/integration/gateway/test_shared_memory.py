"""What gateways share, on real Valkey and in memory: one suite for both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as redis
from martlet_core.errors import NotFound, Unavailable
from martlet_gateway.idempotency import LocalRetryMemory, RedisRetryMemory, RetryMemory, request_id_for
from martlet_gateway.replica_store import LocalReplicaStore, RedisReplicaStore, ReplicaStore


@pytest.fixture(params=["memory", "valkey"])
async def memory(request: pytest.FixtureRequest) -> AsyncIterator[tuple[ReplicaStore, RetryMemory]]:
    """What gateways share, of either kind."""
    if request.param == "memory":
        yield LocalReplicaStore(), LocalRetryMemory()
        return
    client: Any = redis.from_url(request.getfixturevalue("redis_url"))
    yield RedisReplicaStore(client), RedisRetryMemory(client, 60)
    await client.aclose()


@pytest.fixture
async def store(memory: tuple[ReplicaStore, RetryMemory]) -> ReplicaStore:
    return memory[0]


async def test_replicas_come_and_go(store: ReplicaStore) -> None:
    await store.put("a", "h:1", b"one", 5)
    await store.put("b", "h:2", b"two", 5)
    assert await store.all() == [b"one", b"two"]
    await store.renew("a", b"uno", 5)
    assert await store.all() == [b"uno", b"two"]
    await store.remove("a")
    await store.remove("a")
    assert await store.all() == [b"two"]
    with pytest.raises(NotFound):
        await store.renew("a", b"uno", 5)


async def test_same_address_takes_the_old_ones_place(store: ReplicaStore) -> None:
    await store.put("a", "h:1", b"one", 5)
    await store.put("b", "h:1", b"two", 5)
    assert await store.all() == [b"two"]
    with pytest.raises(NotFound):
        await store.renew("a", b"one", 5)


async def test_lease_lapses(store: ReplicaStore) -> None:
    await store.put("a", "h:1", b"one", 0.05)
    await store.put("b", "h:2", b"two", 5)
    while await store.all() != [b"two"]:  # bounded by pytest's time-out
        pass
    with pytest.raises(NotFound):
        await store.renew("a", b"one", 5)


async def test_redis_that_is_away_is_unavailable() -> None:
    client: Any = redis.from_url("redis://127.0.0.1:1/0", socket_connect_timeout=0.2)
    for call in (RedisReplicaStore(client).all(), RedisRetryMemory(client, 5).get("x")):
        with pytest.raises(Unavailable):
            await call
    await client.aclose()


async def test_retries_find_the_first_attempts_id(memory: Any) -> None:
    memory = memory[1]
    first = await request_id_for(memory, {"x-stainless-retry-count": "0"}, "acme", "/r", b"body")
    again = await request_id_for(memory, {"x-stainless-retry-count": "1"}, "acme", "/r", b"body")
    assert again == first
    others = [
        await request_id_for(memory, {"x-stainless-retry-count": "0"}, "acme", "/r", b"body"),
        await request_id_for(memory, {"x-stainless-retry-count": "1"}, "globex", "/r", b"body"),
        await request_id_for(memory, {"x-stainless-retry-count": "1"}, "acme", "/other", b"body"),
        await request_id_for(memory, {"x-stainless-retry-count": "1"}, "acme", "/r", b"other"),
    ]
    assert len({first, *others}) == 5
    named = {"idempotency-key": "k"}
    assert await request_id_for(memory, named, "acme", "/r", b"1") == await request_id_for(
        memory, named, "acme", "/r", b"2"
    )
    assert await request_id_for(memory, named, "acme", "/r", b"1") != await request_id_for(
        memory, named, "x", "/r", b"1"
    )
