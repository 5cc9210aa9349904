"""The reconciler with a clock that the tests move."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import NotFound
from martlet_core.ids import new_id
from martlet_core.job_archive import job_from_json, store_spec
from martlet_core.jobs import Claim, Job, JobState
from martlet_core.models import ObjectModelRegistry
from martlet_core.reconciler import Reconciler, ReconcilerOptions
from martlet_core.stores import Stores
from martlet_core.testing.bell import MemoryBell
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_core.testing.toy_stage import KIND, QUEUE, STAGE, ToyHandler


class Clock:
    """Seconds since the epoch, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Kit:
    """Stores on a hand-moved clock, and reconcilers over them."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock = Clock()
        self.objects = MemoryObjectStore()
        self.artifacts = ContentAddressedStore(self.objects, tmp_path / "cache")
        self.bell = MemoryBell()
        self._tmp_path = tmp_path
        self.use(MemoryJobStore(self.clock))
        self.reconciler = self.new_reconciler("one")

    def use(self, jobs: MemoryJobStore) -> None:
        """Put another job store in the place of the one before, as a wiped server does."""
        self.jobs = jobs
        self.stores = Stores(jobs, self.objects, self.artifacts, ObjectModelRegistry(self.objects))

    def new_reconciler(self, owner: str) -> Reconciler:
        options = ReconcilerOptions(interval_seconds=5.0, unclaimed_seconds=15.0)
        return Reconciler(STAGE, self.stores, self.bell, [ToyHandler()], owner, options, clock=self.clock)

    def submit(self, **fields: Any) -> str:
        job = replace(Job(new_id(), STAGE, KIND, "acme", {"steps": 3}, QUEUE), **fields)
        stored, _ = self.jobs.create(job)
        store_spec(self.objects, stored)
        return stored.id

    def claim(self, job_id: str) -> Claim:
        claim = self.jobs.claim(job_id, "worker", 30.0)
        assert claim is not None
        return claim

    def artifact(self, artifact_id: str, kind: str, job_id: str, metadata: Mapping[str, Any]) -> None:
        directory = self._tmp_path / artifact_id
        directory.mkdir()
        (directory / "data").write_text(artifact_id)
        self.artifacts.put_directory(
            directory, kind=kind, tenant="acme", artifact_id=artifact_id, source_job=job_id, metadata=metadata
        )


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    return Kit(tmp_path)


def test_lapsed_lease_is_queued_and_rung_for(kit: Kit) -> None:
    job_id = kit.submit()
    kit.claim(job_id)
    kit.reconciler.run_once()
    assert kit.jobs.get(job_id).state is JobState.RUNNING
    kit.clock.now += 31
    kit.reconciler.run_once()
    job = kit.jobs.get(job_id)
    assert (job.state, job.lost_attempts) == (JobState.QUEUED, 1)
    assert kit.bell.rings == [(QUEUE, job_id)]


def test_unclaimed_job_is_rung_for_ever_more_rarely(kit: Kit) -> None:
    kit.submit()
    rung_at: list[float] = []
    for second in range(0, 200, 5):
        before = len(kit.bell.rings)
        kit.reconciler.run_once()
        if len(kit.bell.rings) > before:
            rung_at.append(second)
        kit.clock.now += 5
    assert rung_at == [15, 30, 60, 120]


def test_claimed_job_is_not_rung_for(kit: Kit) -> None:
    job_id = kit.submit()
    kit.clock.now += 20
    claim = kit.claim(job_id)
    kit.reconciler.run_once()
    assert kit.bell.rings == []
    assert kit.jobs.heartbeat(job_id, claim.token, 30.0)


def test_abandoned_creation_is_cancelled_in_the_end(kit: Kit) -> None:
    job_id = kit.submit(state=JobState.VALIDATING)
    kit.reconciler.run_once()
    assert kit.jobs.get(job_id).state is JobState.VALIDATING
    kit.clock.now += 601
    kit.reconciler.run_once()
    assert kit.jobs.get(job_id).state is JobState.CANCELLED


def test_final_job_is_archived_with_its_events(kit: Kit) -> None:
    job_id = kit.submit()
    claim = kit.claim(job_id)
    kit.jobs.finish(job_id, claim.token, JobState.FAILED, error={"code": "INTERNAL", "message": "broke"})
    kit.reconciler.run_once()
    assert job_from_json(kit.objects.get(f"jobs/{job_id}/final.json")) == kit.jobs.get(job_id)
    lines = [json.loads(line) for line in kit.objects.get(f"jobs/{job_id}/events.jsonl").splitlines()]
    assert [line["cursor"] for line in lines] == [event.cursor for event in kit.jobs.events(job_id)]
    kit.clock.now += 8 * 24 * 3600
    assert kit.jobs.events(job_id) == []


def test_unfinished_jobs_are_not_archived(kit: Kit) -> None:
    job_id = kit.submit()
    kit.reconciler.run_once()
    assert kit.objects.size(f"jobs/{job_id}/final.json") is None


def succeed(kit: Kit) -> tuple[str, str]:
    job_id = kit.submit()
    claim = kit.claim(job_id)
    name = f"toy:{job_id}"
    result = {"model": name, "model_artifact": "theartifact"}
    kit.jobs.finish(job_id, claim.token, JobState.SUCCEEDED, result=result)
    return job_id, name


def test_publication_that_the_worker_did_not_live_to_make_is_made(kit: Kit) -> None:
    _, name = succeed(kit)
    kit.reconciler.run_once()
    assert kit.stores.models.get(name, tenant="acme").artifact_id == "theartifact"


def test_publication_of_a_lost_attempt_is_replaced(kit: Kit) -> None:
    _, name = succeed(kit)
    kit.stores.models.publish(PublishedModel(name, "adapter", "acme", "zombieartifact", base_model="toy"))
    kit.reconciler.run_once()
    assert kit.stores.models.get(name, tenant="acme").artifact_id == "theartifact"


def test_model_that_its_owner_deleted_does_not_come_back(kit: Kit) -> None:
    _, name = succeed(kit)
    kit.reconciler.run_once()
    kit.stores.models.delete(name, tenant="acme")
    kit.new_reconciler("one").run_once()  # as after a restart: it remembers nothing
    with pytest.raises(NotFound):
        kit.stores.models.get(name, tenant="acme")


def test_job_that_can_not_be_published_does_not_hold_up_the_others(kit: Kit) -> None:
    first, _ = succeed(kit)
    second, _ = succeed(kit)

    class Refusing(ToyHandler):
        def published_model(self, job: Job) -> PublishedModel | None:
            raise NotFound("its artifact was deleted")

    Reconciler(STAGE, kit.stores, kit.bell, [Refusing()], "one", clock=kit.clock).run_once()
    for job_id in (first, second):
        assert kit.objects.size(f"jobs/{job_id}/final.json")


def test_one_of_two_is_elected_and_the_other_takes_over(kit: Kit) -> None:
    other = kit.new_reconciler("two")
    assert kit.reconciler.run_once()
    assert not other.run_once()
    kit.clock.now += 60
    assert other.run_once()
    assert not kit.reconciler.run_once()


def test_stopped_reconciler_hands_over_at_once(kit: Kit) -> None:
    kit.reconciler.start()
    other = kit.new_reconciler("two")
    kit.reconciler.stop()
    assert other.run_once()


def test_emptied_store_is_rebuilt(kit: Kit) -> None:
    done, _ = succeed(kit)
    running = kit.submit()
    kit.claim(running)
    kit.reconciler.run_once()
    finished = kit.jobs.get(done)
    for attempt, step in ((1, 5), (2, 10), (3, 20)):
        kit.artifact(f"{running}a{attempt}s{step}", "checkpoint", running, {"step": step, "attempt": attempt})
    kit.artifact("another", "checkpoint", done, {"step": 99, "attempt": 9})

    kit.use(MemoryJobStore(kit.clock))
    kit.reconciler = kit.new_reconciler("one")
    kit.reconciler.run_once()

    assert kit.jobs.get(done) == finished
    job = kit.jobs.get(running)
    assert job.state is JobState.QUEUED
    assert [entry["step"] for entry in job.checkpoints] == [5, 10, 20]
    claim = kit.claim(running)
    assert claim.token > 3, "the attempt's artifacts would collide with those of one before"


def lose_everything(kit: Kit) -> None:
    """Wipe the job store, and let a new reconciler find that."""
    kit.use(MemoryJobStore(kit.clock))
    kit.reconciler = kit.new_reconciler("after")
    kit.reconciler.run_once()


def told(kit: Kit, job_id: str) -> list[tuple[str, str, str]]:
    return [tuple(event.data.values()) for event in kit.jobs.events(job_id) if event.type == "state"]  # type: ignore[misc]


def test_paused_jobs_come_back_paused(kit: Kit) -> None:
    resting, stopping = kit.submit(), kit.submit()
    kit.claim(stopping)
    kit.artifact(f"{stopping}a1s5", "checkpoint", stopping, {"step": 5, "attempt": 1})
    for job_id in (resting, stopping):
        kit.jobs.request_pause(job_id)
    kit.reconciler.run_once()
    lose_everything(kit)
    for job_id in (resting, stopping):
        assert kit.jobs.get(job_id).state is JobState.PAUSED
        assert kit.jobs.claim(job_id, "worker", 30.0) is None
        assert told(kit, job_id) == [("", "PAUSED", "PAUSE_REQUESTED")]
    assert kit.bell.rings == []
    assert kit.jobs.request_resume(stopping).state is JobState.QUEUED
    claim = kit.claim(stopping)
    assert ([entry["step"] for entry in claim.job.checkpoints], claim.token) == ([5], 3)


@pytest.mark.parametrize("paused_before", [False, True])
def test_job_whose_cancel_was_asked_for_comes_back_cancelled(kit: Kit, paused_before: bool) -> None:
    job_id = kit.submit()
    kit.claim(job_id)
    if paused_before:
        kit.jobs.request_pause(job_id)
        kit.reconciler.run_once()
    kit.jobs.request_cancel(job_id)
    kit.reconciler.run_once()
    lose_everything(kit)
    assert kit.jobs.get(job_id).state is JobState.CANCELLED
    assert told(kit, job_id)[-1] == ("PAUSED", "CANCELLED", "CANCEL_REQUESTED")
    assert job_from_json(kit.objects.get(f"jobs/{job_id}/final.json")).state is JobState.CANCELLED


def test_cancel_is_carried_out_by_a_restoration_that_takes_up_one_that_was_cut_short(kit: Kit) -> None:
    job_id = kit.submit()
    kit.claim(job_id)
    kit.jobs.request_cancel(job_id)
    kit.reconciler.run_once()
    jobs = MemoryJobStore(kit.clock)
    stored = job_from_json(kit.objects.get(f"jobs/{job_id}/spec.json"))
    jobs.restore(replace(stored, state=JobState.PAUSED))  # and then the reconciler died
    kit.use(jobs)
    kit.new_reconciler("after").run_once()
    assert kit.jobs.get(job_id).state is JobState.CANCELLED


def test_resumed_job_comes_back_queued(kit: Kit) -> None:
    job_id = kit.submit()
    kit.jobs.request_pause(job_id)
    kit.reconciler.run_once()
    kit.jobs.request_resume(job_id)
    kit.new_reconciler("one").run_once()  # its first round is a full scan
    lose_everything(kit)
    assert kit.jobs.get(job_id).state is JobState.QUEUED
    assert told(kit, job_id) == [("", "QUEUED", "RESTORED")]


def test_wishes_are_forgotten_when_the_end_is_archived_and_no_earlier(kit: Kit) -> None:
    ended, running, lost = kit.submit(), kit.submit(), new_id()
    claim = kit.claim(ended)
    for job_id in (ended, running):
        kit.jobs.request_pause(job_id)
    kit.reconciler.run_once()
    kit.objects.put(f"wishes/{STAGE}/{lost}.pause", b"")  # of a job that isn't there (yet)
    kit.jobs.finish(ended, claim.token, JobState.SUCCEEDED, result={"model": "m", "model_artifact": "a"})
    kit.jobs.request_resume(running)
    kit.new_reconciler("one").run_once()
    assert {key.split("/")[2] for key in kit.objects.list("wishes/")} == {f"{ended}.pause", f"{lost}.pause"}
    assert kit.objects.size(f"jobs/{ended}/final.json")
    kit.new_reconciler("one").run_once()
    assert [key.split("/")[2] for key in kit.objects.list("wishes/")] == [f"{lost}.pause"]


def test_wishes_of_other_stages_are_left_alone(kit: Kit) -> None:
    job_id = kit.submit()
    kit.objects.put(f"wishes/other/{job_id}.cancel", b"")
    lose_everything(kit)
    assert kit.jobs.get(job_id).state is JobState.QUEUED
    assert kit.objects.list("wishes/") == [f"wishes/other/{job_id}.cancel"]


def test_rebuilding_happens_once(kit: Kit) -> None:
    kit.reconciler.run_once()
    listings = kit.objects.calls["list"]
    for _ in range(5):
        kit.reconciler.run_once()
    assert kit.objects.calls["list"] == listings


def test_rebuilding_that_was_cut_short_is_taken_up_again(kit: Kit) -> None:
    first, second = kit.submit(), kit.submit()
    jobs = MemoryJobStore(kit.clock)
    jobs.restore(job_from_json(kit.objects.get(f"jobs/{first}/spec.json")))  # and then the reconciler died
    kit.use(jobs)
    kit.new_reconciler("one").run_once()
    assert kit.jobs.get(second).state is JobState.QUEUED


def test_jobs_of_other_stages_are_left_alone(kit: Kit) -> None:
    store_spec(kit.objects, Job(new_id(), "other", KIND, "acme", {}, QUEUE))
    kit.reconciler.run_once()
    assert not kit.jobs.list().jobs
