"""Chores: whose turn it is, what is swept, and what never is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.layout import ref_key
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.backoff import GaveUp
from martlet_core.errors import Unavailable
from martlet_core.housekeeping import Chore, Housekeeper, store_chores
from martlet_core.ids import checkpoint_artifact_id, new_id, output_artifact_id
from martlet_core.job_archive import mark_whole
from martlet_core.jobs import Job, JobState
from martlet_core.leftovers import sweep_attempts
from martlet_core.models import ObjectModelRegistry
from martlet_core.stores import Stores
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore

STAGE = "toy"
TENANT = "acme"
HOUR = 3600.0
DAY = 24 * HOUR


class Clock:
    """Seconds since the epoch, moved by hand; it begins now, because artifacts bear the time of the machine."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Kit:
    """Stores on a hand-moved clock, jobs, and what attempts at them upload."""

    def __init__(self, tmp_path: Path, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.jobs = MemoryJobStore(self.clock)
        self.objects = MemoryObjectStore()
        self.artifacts = ContentAddressedStore(self.objects, tmp_path / "cache")
        self.stores = Stores(self.jobs, self.objects, self.artifacts, ObjectModelRegistry(self.objects))
        self._tmp_path = tmp_path
        mark_whole(self.jobs, STAGE)

    def artifact(self, artifact_id: str | None = None, **fields: Any) -> str:
        directory = self._tmp_path / new_id()
        directory.mkdir()
        (directory / "data").write_text(directory.name)
        made = self.artifacts.put_directory(
            directory, **{"kind": "adapter", "tenant": TENANT, "artifact_id": artifact_id, **fields}
        )
        return made.id

    def attempt(self, job: Job, token: int) -> list[str]:
        """What an attempt uploads: an output and a checkpoint."""
        return [
            self.artifact(output_artifact_id(job.id, token, "model"), source_job=job.id),
            self.artifact(checkpoint_artifact_id(job.id, token, 10), source_job=job.id, kind="checkpoint"),
        ]

    def running(self, **spec: Any) -> Job:
        job, _ = self.jobs.create(Job(new_id(), STAGE, "counting", TENANT, spec, "toy"))
        claim = self.jobs.claim(job.id, "worker", 30.0)
        assert claim is not None
        return claim.job

    def finish(self, job: Job, state: JobState = JobState.SUCCEEDED, *, output: str = "", checkpoint: str = "") -> None:
        if checkpoint:
            self.jobs.update(job.id, 1, checkpoints=[{"artifact_id": checkpoint, "step": 10}])
        self.jobs.finish(job.id, 1, state, result={"model_artifact": f"artifacts/{output}"} if output else None)

    def sweep(self, **options: Any) -> int:
        return sweep_attempts(self.stores, [STAGE], clock=self.clock, **options)

    def left(self) -> set[str]:
        return {artifact.id for artifact in self.artifacts.list(tenant=TENANT).artifacts}


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


class Recording:
    """A chore that counts its turns."""

    def __init__(self, name: str = "count", fail: Exception | None = None) -> None:
        self.turns = 0
        self.fail = fail
        self.chore = Chore(name, self.run)

    def run(self, give_up: Callable[[], bool]) -> None:
        self.turns += 1
        if self.fail is not None:
            raise self.fail


# Turns


def test_of_many_processes_one_gets_the_turn(kit: Kit) -> None:
    racers = 8
    barrier = threading.Barrier(racers)
    chore = Recording()

    def race(_: int) -> list[str]:
        barrier.wait()
        return Housekeeper(kit.jobs, [chore.chore], DAY).run_due()

    with ThreadPoolExecutor(racers) as pool:
        done = list(pool.map(race, range(racers)))
    assert sorted(done) == [*[[]] * (racers - 1), ["count"]]
    assert chore.turns == 1


def test_turn_comes_once_a_period(kit: Kit) -> None:
    chore = Recording()
    first, second = (Housekeeper(kit.jobs, [chore.chore], DAY) for _ in range(2))
    turns = []
    for _ in range(50):
        first.run_due()
        second.run_due()
        turns.append(chore.turns)
        kit.clock.now += HOUR
    assert (turns[0], turns[23], turns[25], turns[49]) == (1, 1, 2, 3)


@pytest.mark.parametrize("failure", [Unavailable("away"), ValueError("a bug"), GaveUp("stopping")])
def test_turn_that_failed_is_taken_up_again_and_holds_nothing_up(kit: Kit, failure: Exception) -> None:
    failing, other = Recording("failing", failure), Recording("other")
    housekeeper = Housekeeper(kit.jobs, [failing.chore, other.chore], DAY)
    assert housekeeper.run_due() == ["other"]
    failing.fail = None
    assert Housekeeper(kit.jobs, [failing.chore, other.chore], DAY).run_due() == ["failing"]
    assert (failing.turns, other.turns) == (2, 1)


def test_job_store_that_is_away_is_not_fatal(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> bool:
        raise Unavailable("away")

    chore = Recording()
    with monkeypatch.context() as patch:
        patch.setattr(kit.jobs, "acquire_lease", away)
        patch.setattr(kit.jobs, "release_lease", away)
        assert Housekeeper(kit.jobs, [chore.chore], DAY).run_due() == []
    assert Housekeeper(kit.jobs, [chore.chore], DAY).run_due() == ["count"]


def test_stopping_ends_what_is_under_way_and_gives_the_turn_back(kit: Kit) -> None:
    begun = threading.Event()

    def endless(give_up: Callable[[], bool]) -> None:
        begun.set()
        while not give_up():
            pass
        raise GaveUp("endless")

    other = Recording("other")
    housekeeper = Housekeeper(kit.jobs, [Chore("endless", endless), other.chore], 0.001)
    housekeeper.start()
    assert begun.wait(20)
    housekeeper.stop()
    assert other.turns == 0
    assert kit.jobs.acquire_lease("housekeeping:endless", "next", 1.0)


# What is swept


def test_store_chores_sweep_the_object_store(kit: Kit) -> None:
    kit.objects.put(ref_key("0" * 64, "dead"), json.dumps({"time": 0}).encode())
    done = Housekeeper(kit.jobs, store_chores(kit.stores, [STAGE]), DAY).run_due()
    assert done == ["objects", "attempts"]
    assert kit.objects.list("") == []


def test_sweep_of_the_objects_can_be_given_up(kit: Kit) -> None:
    kit.objects.put(ref_key("0" * 64, "dead"), json.dumps({"time": 0}).encode())
    with pytest.raises(GaveUp):
        kit.artifacts.sweep(give_up=lambda: True)
    assert kit.objects.list("refs/")


def test_what_a_killed_attempt_left_is_deleted_and_the_result_stays(kit: Kit) -> None:
    job = kit.running()
    lost = kit.attempt(job, 7)
    output, checkpoint = kit.attempt(job, 1)
    uploaded = kit.artifact(kind="dataset")
    kit.finish(job, output=output, checkpoint=checkpoint)
    assert {*lost, output, checkpoint, uploaded} == kit.left()
    kit.clock.now += DAY + 1
    assert kit.sweep() == 2
    assert kit.left() == {output, checkpoint, uploaded}
    assert kit.sweep() == 0


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_jobs_without_a_result_keep_their_checkpoints(kit: Kit, state: JobState) -> None:
    job = kit.running()
    _, checkpoint = kit.attempt(job, 1)
    kit.finish(job, state, checkpoint=checkpoint)
    kit.clock.now += DAY + 1
    assert kit.sweep() == 1
    assert kit.left() == {checkpoint}


def test_nothing_of_a_job_that_is_not_over_is_touched(kit: Kit) -> None:
    held, queued, paused = kit.running(), kit.running(), kit.running()
    kit.jobs.finish(queued.id, 1, JobState.QUEUED)
    kit.jobs.request_pause(paused.id)
    made = [artifact for job in (held, queued, paused) for artifact in kit.attempt(job, 1)]
    kit.clock.now += 100 * DAY
    assert kit.sweep() == 0
    assert kit.left() == set(made)


def test_nothing_of_a_job_that_ended_lately_is_touched(kit: Kit) -> None:
    job = kit.running()
    kit.attempt(job, 1)
    kit.clock.now += 100 * DAY
    kit.finish(job)
    kit.clock.now += DAY - 60
    assert kit.sweep() == 0
    kit.clock.now += 120
    assert kit.sweep() == 2


def test_young_artifact_of_an_old_job_is_left(tmp_path: Path) -> None:
    """A worker that woke up late is still at it."""
    clock = Clock()
    clock.now -= 30 * DAY
    kit = Kit(tmp_path, clock)
    job = kit.running()
    kit.finish(job)
    kit.attempt(job, 1)
    clock.now += 30 * DAY
    assert kit.sweep() == 0
    clock.now += DAY + 1
    assert kit.sweep() == 2


@pytest.mark.parametrize("user", ["model", "parent", "spec"])
def test_what_something_else_names_is_left(kit: Kit, user: str) -> None:
    job = kit.running()
    output, checkpoint = kit.attempt(job, 1)
    kit.finish(job)
    if user == "model":
        kit.stores.models.publish(PublishedModel("ft:mine", "adapter", TENANT, output, base_model="toy"))
    elif user == "parent":
        kit.artifact(parents=[output])
    else:
        kit.running(base_model=f"artifacts/{output}")
    kit.clock.now += DAY + 1
    assert kit.sweep() == 1
    assert output in kit.left()
    assert checkpoint not in kit.left()


def test_artifacts_that_only_look_like_an_attempts_are_left(kit: Kit) -> None:
    job = kit.running()
    named = kit.artifact(output_artifact_id(job.id, 1, "model"))  # no source_job: a user's
    orphan = kit.artifact(output_artifact_id(new_id(), 1, "model"), source_job=new_id())
    kit.finish(job)
    kit.clock.now += DAY + 1
    assert kit.sweep() == 0
    assert kit.left() == {named, orphan}


def test_nothing_is_swept_while_the_job_store_is_being_rebuilt(kit: Kit) -> None:
    job = kit.running()
    made = kit.attempt(job, 1)
    kit.finish(job)
    kit.clock.now += DAY + 1
    kit.jobs.release_lease(f"restored:{STAGE}", "restored")
    with pytest.raises(Unavailable):
        kit.sweep()
    assert kit.left() == set(made)
