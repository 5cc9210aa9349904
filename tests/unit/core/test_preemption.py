"""A running job makes room for one of higher priority, and only as many as are needed do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from martlet_core import supervisor
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.errors import Unavailable
from martlet_core.ids import new_id
from martlet_core.jobs import Job, JobState
from martlet_core.models import ObjectModelRegistry
from martlet_core.preemption import Preemption
from martlet_core.stores import Stores
from martlet_core.testing.bell import MemoryBell
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_core.testing.toy_recipe import value_after
from martlet_core.testing.toy_stage import KIND, QUEUE, STAGE, ToyHandler
from martlet_core.worker import Worker, WorkerOptions

DEADLINE_SECONDS = 30.0


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(clock: Clock) -> MemoryJobStore:
    return MemoryJobStore(clock=clock)


def create(jobs: MemoryJobStore, priority: int = 5, queue: str = QUEUE) -> Job:
    spec = {"steps": 20, "checkpoint_every": 5}
    job, _ = jobs.create(Job(new_id(), STAGE, KIND, "acme", spec, queue, priority=priority))
    return job


def running(jobs: MemoryJobStore, clock: Clock, priority: int = 5) -> Job:
    clock.now += 1
    claim = jobs.claim(create(jobs, priority).id, "worker", 3600.0)
    assert claim is not None
    return claim.job


def watcher(jobs: MemoryJobStore, job: Job, clock: Clock) -> Callable[[], bool]:
    """Whether the job should make room, looked at often enough for two checks."""
    preemption = Preemption(jobs, job, 30.0, check_seconds=5.0, clock=clock)

    def is_due() -> bool:
        clock.now += 5.0
        preemption.is_due()
        clock.now += 5.0
        return preemption.is_due()

    return is_due


def test_makes_room_once_the_other_has_waited_long_enough(jobs: MemoryJobStore, clock: Clock) -> None:
    job = running(jobs, clock)
    is_due = watcher(jobs, job, clock)
    create(jobs, priority=6)
    assert not is_due(), "it waits for 10 seconds only"
    clock.now += 30.0
    assert is_due()


@pytest.mark.parametrize("priority", [4, 5])
def test_stays_for_what_matters_no_more(jobs: MemoryJobStore, clock: Clock, priority: int) -> None:
    job = running(jobs, clock)
    create(jobs, priority)
    clock.now += 100.0
    assert not watcher(jobs, job, clock)()


def test_other_queues_are_other_workers_affair(jobs: MemoryJobStore, clock: Clock) -> None:
    job = running(jobs, clock)
    create(jobs, priority=9, queue="another")
    clock.now += 100.0
    assert not watcher(jobs, job, clock)()


def test_one_look_is_not_enough(jobs: MemoryJobStore, clock: Clock) -> None:
    job = running(jobs, clock)
    create(jobs, priority=9)
    clock.now += 100.0
    preemption = Preemption(jobs, job, 30.0, check_seconds=5.0, clock=clock)
    clock.now += 5.0
    assert not preemption.is_due()
    assert not preemption.is_due(), "the next look is not due yet"
    clock.now += 5.0
    assert preemption.is_due()


def test_the_least_and_newest_goes_and_nobody_else(jobs: MemoryJobStore, clock: Clock) -> None:
    old, new, important = running(jobs, clock, 3), running(jobs, clock, 3), running(jobs, clock, 7)
    create(jobs, priority=8)
    clock.now += 100.0
    assert [watcher(jobs, job, clock)() for job in (old, new, important)] == [False, True, False]
    create(jobs, priority=5)
    clock.now += 100.0
    assert [watcher(jobs, job, clock)() for job in (old, new, important)] == [True, True, False]


def test_zero_switches_it_off(jobs: MemoryJobStore, clock: Clock) -> None:
    job = running(jobs, clock)
    create(jobs, priority=9)
    clock.now += 1000.0
    preemption = Preemption(jobs, job, 0.0, clock=clock)
    assert not preemption.is_on
    assert not preemption.is_due()


def test_stays_while_the_store_is_away(jobs: MemoryJobStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    job = running(jobs, clock)
    create(jobs, priority=9)
    clock.now += 100.0

    def away(*args: object, **kwargs: object) -> None:
        raise Unavailable("the job store is away")

    monkeypatch.setattr(jobs, "queued", away)
    assert not watcher(jobs, job, clock)()


def test_a_worker_runs_the_urgent_job_first_and_then_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "CHECK_SECONDS", 0.05)
    jobs, objects = MemoryJobStore(), MemoryObjectStore()
    stores = Stores(jobs, objects, ContentAddressedStore(objects, tmp_path / "cache"), ObjectModelRegistry(objects))
    options = WorkerOptions(QUEUE, tmp_path / "work", 3.0, 10.0, idle_poll_seconds=60.0, preempt_after_seconds=0.01)
    worker = Worker(stores, MemoryBell(), [ToyHandler()], options)
    worker.start()
    patient = Job(new_id(), STAGE, KIND, "acme", {"steps": 200, "step_seconds": 0.02}, QUEUE, priority=2)
    jobs.create(patient)
    thread = threading.Thread(target=worker.on_ring, args=(patient.id,))
    thread.start()
    try:
        _wait_until(lambda: jobs.get(patient.id).progress.get("step", 0) >= 2)
        urgent = create(jobs, priority=9)
        _wait_until(lambda: jobs.get(urgent.id).state is JobState.SUCCEEDED)
        before = jobs.get(patient.id)
        assert before.state in (JobState.QUEUED, JobState.RUNNING)
        assert before.lost_attempts == 0
        assert any("Making room" in event.message for event in jobs.events(patient.id, limit=1000))
        _wait_until(lambda: jobs.get(patient.id).state is JobState.SUCCEEDED)
        assert jobs.get(patient.id).attempt == 2
        assert int(jobs.get(patient.id).result["value"]) == value_after(200)
    finally:
        worker.stop()
        thread.join(DEADLINE_SECONDS)


def _wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
