"""The job store on a real Valkey: the common suite, and what only a server can do wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from martlet_core.errors import LeaseLost, Unavailable
from martlet_core.job_rules import TRANSITIONS
from martlet_core.job_store import RedisJobStore
from martlet_core.jobs import Job, JobState, JobStore
from martlet_core.local_servers import free_port
from martlet_core.testing.job_store_suite import JobStoreSuite
from martlet_core.testing.job_store_suite.base import LONG_LEASE, SHORT_LEASE, PassTime, claim, create, new_job
from martlet_core.testing.servers import RunningServer, start_valkey


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisJobStore]:
    """A store on an empty database."""
    store = RedisJobStore.from_url(redis_url)
    yield store
    store.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client of the store's database."""
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    yield client
    client.close()


class TestRedisJobStore(JobStoreSuite):
    """The suite on the server's own clock."""

    @pytest.fixture
    def store(self, store: RedisJobStore) -> JobStore:
        return store

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


def test_hot_paths_are_one_round_trip(store: RedisJobStore, client: redis.Redis) -> None:
    store.claim_next("trainer", "w", LONG_LEASE)
    first = claim(store, create(store))
    store.heartbeat(first.job.id, first.token, LONG_LEASE)
    job = new_job()
    calls: list[tuple[str, Callable[[], object]]] = [
        ("create", lambda: store.create(job)),
        ("claim", lambda: store.claim(job.id, "w", LONG_LEASE)),
        ("claim_next", lambda: store.claim_next("trainer", "w", LONG_LEASE)),
        ("heartbeat", lambda: store.heartbeat(job.id, 1, LONG_LEASE)),
        ("get", lambda: store.get(job.id)),
        ("events", lambda: store.events(job.id)),
        ("with_news", lambda: store.with_news([(first.job.id, ""), (job.id, "")])),
    ]
    for name, call in calls:
        client.config_resetstat()
        call()
        # Commands that scripts run inside the server are counted apart from those that came over the wire.
        stats = client.info("commandstats")
        command = "cmdstat_hgetall" if name == "get" else "cmdstat_evalsha"
        assert stats[command]["calls"] == 1, name
        assert client.info("stats")["total_reads_processed"] <= 3, name  # ours, and the two that ask


def test_scripts_come_back_after_the_server_forgot_them(store: RedisJobStore, client: redis.Redis) -> None:
    job = create(store)
    client.script_flush()
    assert claim(store, job).token == 1


def test_finished_job_leaves_nothing_behind_in_queues_and_leases(store: RedisJobStore, client: redis.Redis) -> None:
    job = create(store)
    token = claim(store, job).token
    store.finish(job.id, token, JobState.SUCCEEDED)
    assert not client.exists("martlet:queue:trainer", "martlet:leases:trainer")


def test_lists_longer_than_a_scripts_budget_are_whole(store: RedisJobStore) -> None:
    rare = create(store, labels={"rare": "yes"})
    for _ in range(1100):
        store.create(new_job(spec={}))
    page = store.list(tenant="acme", labels={"rare": "yes"})
    assert [job.id for job in page.jobs] == [rare.id]
    assert page.next_page_token == ""
    big = store.list(page_size=1000)
    assert len(big.jobs) == 1000
    assert len(store.list(page_size=1000, page_token=big.next_page_token).jobs) == 101


def test_stores_with_different_prefixes_share_a_server(redis_url: str, store: RedisJobStore) -> None:
    other = RedisJobStore.from_url(redis_url, prefix="other:")
    create(store)
    assert other.list().jobs == []
    other.close()


def test_reap_handles_more_leases_than_a_batch(store: RedisJobStore) -> None:
    orphans = [
        new_job(state=JobState.RUNNING, attempt=1, lease_owner="gone", lease_until=1.0 + i, create_time=1.0, spec={})
        for i in range(401)
    ]
    for orphan in orphans:
        store.restore(orphan)
    assert [job.id for job in store.reap("trainer")] == [orphan.id for orphan in orphans]
    assert store.reap("trainer") == []


def test_every_rule_reaches_the_scripts(store: RedisJobStore) -> None:
    text = next(iter(store._scripts.values())).script
    for action in TRANSITIONS:
        assert f"{action} = {{" in str(text)


# A server that goes away


def test_server_that_is_not_there_is_unavailable() -> None:
    store = RedisJobStore.from_url(f"redis://127.0.0.1:{free_port()}/0")
    job = new_job()
    started = time.monotonic()
    calls: list[Callable[[], object]] = [
        store.ping,
        lambda: store.create(job),
        lambda: store.get(job.id),
        lambda: store.list(),
        lambda: store.claim_next("trainer", "w", LONG_LEASE),
        lambda: store.heartbeat(job.id, 1, LONG_LEASE),
        lambda: store.wait_events(job.id, after="", timeout_seconds=1),
        lambda: store.queued("trainer"),
        lambda: store.acquire_lease("leader", "w", LONG_LEASE),
    ]
    for call in calls:
        with pytest.raises(Unavailable) as caught:
            call()
        assert caught.value.retry_after_seconds
    assert time.monotonic() - started < 5, "a refused connection must be told at once"
    store.close()


def test_wrong_password_is_unavailable(tmp_path: Path) -> None:
    server = start_valkey(tmp_path, password="right")
    try:
        url = f"redis://:wrong@127.0.0.1:{server.port}/0"
        store = RedisJobStore.from_url(url)
        with pytest.raises(Unavailable):
            store.ping()
        store.close()
    finally:
        server.stop()


def test_full_server_is_unavailable_and_keeps_what_it_has(tmp_path: Path) -> None:
    server = start_valkey(tmp_path)
    client = redis.Redis.from_url(server.url)
    store = RedisJobStore.from_url(server.url)
    try:
        job = create(store)
        client.config_set("maxmemory", "1")
        with pytest.raises(Unavailable):
            store.create(new_job())
        assert store.get(job.id) == job
        client.config_set("maxmemory", "0")
        assert create(store).id != job.id
    finally:
        client.close()
        store.close()
        server.stop()


class _Restarts:
    """A Valkey with an append-only file that can be killed and started again in the same place."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.server: RunningServer = start_valkey(directory)
        self.url, self._port = self.server.url, self.server.port

    def start(self) -> None:
        self.server = start_valkey(self._directory, port=self._port)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[_Restarts]:
    """A server of the test's own."""
    valkey = _Restarts(tmp_path)
    yield valkey
    valkey.server.kill()


def test_records_survive_a_killed_server_and_the_store_recovers(valkey: _Restarts) -> None:
    store = RedisJobStore.from_url(valkey.url)
    queued: list[Job] = [create(store, request_id=f"r-{i}") for i in range(20)]
    running = claim(store, create(store), owner="a")
    lapsing = claim(store, create(store), lease_seconds=SHORT_LEASE)
    store.update(running.job.id, running.token, progress={"step": 3}, checkpoints=[{"step": 3}])
    events = list(store.events(running.job.id))

    valkey.server.kill()
    for call in (store.ping, lambda: store.get(queued[0].id), lambda: store.create(new_job())):
        with pytest.raises(Unavailable):
            call()
    valkey.start()

    assert [job.id for job in store.queued("trainer")] == [job.id for job in queued]
    assert store.create(new_job(request_id="r-7"))[0].id == queued[7].id
    assert store.get(running.job.id).progress == {"step": 3}
    assert list(store.events(running.job.id)) == events
    assert store.heartbeat(running.job.id, running.token, LONG_LEASE)
    assert [job.id for job in store.reap("trainer")] == [lapsing.job.id]
    with pytest.raises(LeaseLost):
        store.finish(lapsing.job.id, lapsing.token, JobState.SUCCEEDED)
    assert store.finish(running.job.id, running.token, JobState.SUCCEEDED).state is JobState.SUCCEEDED
    said = store.append_event(queued[0].id, store.events(queued[0].id)[0])
    assert said.cursor > store.events(queued[0].id)[0].cursor
    store.close()


def test_waiter_learns_that_the_server_died(valkey: _Restarts) -> None:
    store = RedisJobStore.from_url(valkey.url)
    job = create(store)
    last = store.events(job.id)[-1].cursor
    other = redis.Redis.from_url(valkey.url)

    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(store.wait_events, job.id, after=last, timeout_seconds=60)
        deadline = time.monotonic() + 30
        while other.info("clients")["blocked_clients"] == 0:
            assert time.monotonic() < deadline, "the waiter never began to wait"
            time.sleep(0.005)
        valkey.server.kill()
        with pytest.raises(Unavailable):
            waiter.result(30)
    valkey.start()
    store.request_cancel(job.id)
    assert [event.data["to"] for event in store.wait_events(job.id, after=last, timeout_seconds=60)] == ["CANCELLED"]
    other.close()
    store.close()
