"""The GPU leases on a real Valkey: the common suite, and what only a server can do wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from martlet_core.errors import Unavailable
from martlet_core.gpu_leases import RedisGpuLeases
from martlet_core.gpus import GpuLease
from martlet_core.local_servers import free_port
from martlet_core.testing.gpu_lease_suite import LONG, SHORT, GpuLeaseSuite, PassTime, most_used, taken, waits, wish

KEY = "martlet:gpus:machine"


@pytest.fixture
def gpus(redis_url: str) -> Iterator[RedisGpuLeases]:
    """The leases of a machine, on an empty database."""
    gpus = RedisGpuLeases.from_url(redis_url, "machine")
    yield gpus
    gpus.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client of the same database."""
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    yield client
    client.close()


class TestRedisGpuLeases(GpuLeaseSuite):
    """The suite on the server's own clock."""

    @pytest.fixture
    def gpus(self, gpus: RedisGpuLeases) -> RedisGpuLeases:
        return gpus

    @pytest.fixture
    def pass_time(self, client: redis.Redis) -> PassTime:
        def server_time() -> float:
            seconds, micros = client.time()
            return seconds + micros / 1e6

        def pass_time(seconds: float) -> None:
            end = server_time() + seconds
            while server_time() <= end:
                time.sleep(0.002)

        return pass_time

    @pytest.fixture
    def lose_all(self, client: redis.Redis) -> Callable[[], None]:
        return client.flushdb


def test_machines_do_not_meet(gpus: RedisGpuLeases, redis_url: str) -> None:
    other = RedisGpuLeases.from_url(redis_url, "other")
    taken(gpus, wish("x", "a"))
    taken(other, wish("x", "a"))
    other.close()


def test_nothing_is_left_behind(gpus: RedisGpuLeases, client: redis.Redis) -> None:
    taken(gpus, wish("x"))
    waits(gpus, wish("y"))
    assert 0 < client.pttl(KEY) <= (LONG + 60.0) * 1000  # type: ignore[operator]
    gpus.release("x")
    gpus.release("y")
    assert not client.exists(KEY)


def test_many_at_once_keep_to_the_rules(gpus: RedisGpuLeases) -> None:
    """Holders take, renew and release in threads; whoever looks at any time never sees more than a whole GPU."""
    seen: list[float] = []

    def hold(number: int) -> int:
        granted = 0
        pick = random.Random(number)
        for turn in range(15):
            share = pick.choice((0.25, 0.35, 0.65, 1.0))
            answer = gpus.take(wish(f"{number}.{turn}", "a", "b", share=share), LONG)
            seen.append(most_used(gpus.leases()))
            if isinstance(answer, GpuLease):
                granted += 1
                gpus.renew(answer, LONG)
            gpus.release(f"{number}.{turn}")
        return granted

    with ThreadPoolExecutor(6) as pool:
        granted = sum(pool.map(hold, range(6)))
    assert granted > 0
    assert max(seen) <= 1.0
    assert gpus.leases() == []
    assert gpus.tickets() == []


def test_a_server_that_is_not_there_is_unavailable() -> None:
    gpus = RedisGpuLeases.from_url(f"redis://127.0.0.1:{free_port()}/0", "machine")
    lease = GpuLease("x", "job x", ("a",), 1.0, False, 1, 0.0)
    calls: list[Callable[[], object]] = [
        lambda: gpus.take(wish("x"), SHORT),
        lambda: gpus.renew(lease, SHORT),
        lambda: gpus.release("x"),
        gpus.leases,
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            call()
    gpus.close()
