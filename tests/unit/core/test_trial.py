"""A finished job's model is published and tried before the commit, and withdrawn where the job then doesn't succeed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, NotFound, Unavailable
from martlet_core.ids import new_id
from martlet_core.job_archive import mark_whole
from martlet_core.job_handler import FinishedJob, TriesItsModel
from martlet_core.jobs import Job, JobState
from martlet_core.models import ObjectModelRegistry
from martlet_core.reconciler import Reconciler
from martlet_core.stores import Stores
from martlet_core.testing.bell import MemoryBell
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_core.testing.toy_stage import KIND, QUEUE, STAGE, ToyHandler
from martlet_core.trial import PHASE
from martlet_core.worker import Worker, WorkerOptions

DEADLINE_SECONDS = 30.0
Trial = Callable[[Job, FinishedJob, Callable[[], bool]], FinishedJob]


class Killed(BaseException):
    """Ends a worker as SIGKILL does: nothing is committed or cleaned up behind it."""


def with_row(finished: FinishedJob, detail: str) -> FinishedJob:
    return replace(finished, result={**finished.result, "tried": detail})


def answers(job: Job, finished: FinishedJob, give_up: Callable[[], bool]) -> FinishedJob:
    return with_row(finished, "it answered")


def never_answers(job: Job, finished: FinishedJob, give_up: Callable[[], bool]) -> FinishedJob:
    """A replica that takes its time: it is waited for until the worker has to go on."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not give_up():
        assert time.monotonic() < deadline, "nobody ended the trial"
        time.sleep(0.01)
    return with_row(finished, "not tried")


def dies(job: Job, finished: FinishedJob, give_up: Callable[[], bool]) -> FinishedJob:
    raise Killed


@dataclass(frozen=True)
class TryingHandler(ToyHandler):
    """The toy stage's handler with a trial that a test scripts."""

    trial: Trial = answers
    begun: threading.Event = field(default_factory=threading.Event)

    def try_out(self, job: Job, finished: FinishedJob, give_up: Callable[[], bool]) -> FinishedJob:
        self.begun.set()
        return self.trial(job, finished, give_up)

    def tried_name(self, job: Job) -> str | None:
        return f"toy:{job.id}"


class FlakyObjects(MemoryObjectStore):
    """An object store that takes no model's name while ``down`` is set."""

    down = False

    def put_if_absent(self, key: str, data: bytes, *, content_type: str = "application/json") -> bool:
        if self.down and key.startswith("models/"):
            raise Unavailable("the object store is away")
        return super().put_if_absent(key, data, content_type=content_type)


class Stage:
    """A stage in this process, one job of it, and workers whose trials go as a test wants."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self.jobs = MemoryJobStore()
        self.objects = FlakyObjects()
        self.artifacts = ContentAddressedStore(self.objects, tmp_path / "cache")
        self.stores = Stores(self.jobs, self.objects, self.artifacts, ObjectModelRegistry(self.objects))
        self.workers: list[Worker] = []
        self._threads: list[threading.Thread] = []
        self.job_id = self.submit()

    def submit(self, priority: int = 5) -> str:
        spec = {"steps": 2, "checkpoint_every": 100}
        job, _ = self.jobs.create(Job(new_id(), STAGE, KIND, "acme", spec, QUEUE, priority=priority))
        return job.id

    @property
    def job(self) -> Job:
        return self.jobs.get(self.job_id)

    def worker(self, handler: ToyHandler, **options: Any) -> Worker:
        work_dir = self._tmp_path / f"work{len(self.workers)}"
        made = WorkerOptions(QUEUE, work_dir, lease_seconds=3.0, idle_poll_seconds=60.0, **options)
        worker = Worker(self.stores, MemoryBell(), [handler], made)
        worker.start()
        self.workers.append(worker)
        return worker

    def run(self, trial: Trial) -> Job:
        self.worker(TryingHandler(trial=trial)).on_ring(self.job_id)
        return self.job

    def start(self, **options: Any) -> tuple[Worker, threading.Thread]:
        """A worker that is in its trial, which waits."""
        handler = TryingHandler(trial=never_answers)
        worker = self.worker(handler, **options)
        thread = threading.Thread(target=worker.on_ring, args=(self.job_id,), daemon=True)
        thread.start()
        self._threads.append(thread)
        assert handler.begun.wait(DEADLINE_SECONDS)
        return worker, thread

    def published(self) -> PublishedModel:
        return self.stores.models.get(f"toy:{self.job_id}", tenant="acme")

    def reconcile(self) -> None:
        mark_whole(self.jobs, STAGE)
        Reconciler(STAGE, self.stores, MemoryBell(), [TryingHandler()], "test").run_once()

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def test_a_handler_that_tries_nothing_is_none_that_does() -> None:
    assert isinstance(TryingHandler(), TriesItsModel)
    assert not isinstance(ToyHandler(), TriesItsModel)


def test_the_model_is_published_before_it_is_tried_and_the_row_is_committed(stage: Stage) -> None:
    seen: list[tuple[str, JobState]] = []

    def look(job: Job, finished: FinishedJob, give_up: Callable[[], bool]) -> FinishedJob:
        seen.append((stage.published().artifact_id, stage.job.state))
        deadline = time.monotonic() + DEADLINE_SECONDS
        while stage.job.progress.get("phase") != PHASE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return answers(job, finished, give_up)

    job = stage.run(look)
    assert (job.state, job.result["tried"]) == (JobState.SUCCEEDED, "it answered")
    assert seen == [(job.result["model_artifact"], JobState.RUNNING)]
    assert stage.published().artifact_id == job.result["model_artifact"]


def test_a_trial_that_breaks_fails_no_job(stage: Stage) -> None:
    def breaks(*_: Any) -> FinishedJob:
        raise FailedPrecondition("the engine broke")

    job = stage.run(breaks)
    assert job.state is JobState.SUCCEEDED
    assert "tried" not in job.result
    said = [event.message for event in stage.jobs.events(stage.job_id, limit=1000)]
    assert any("not tried: FailedPrecondition: the engine broke" in message for message in said)


def test_cancel_ends_the_trial_and_withdraws_the_model(stage: Stage) -> None:
    _, thread = stage.start()
    assert stage.published()
    stage.jobs.request_cancel(stage.job_id)
    thread.join(DEADLINE_SECONDS)
    assert stage.job.state is JobState.CANCELLED
    with pytest.raises(NotFound):
        stage.published()
    assert not stage.artifacts.list(tenant="acme").artifacts


def test_pause_ends_the_trial_and_the_finished_work_is_committed(stage: Stage) -> None:
    _, thread = stage.start()
    stage.jobs.request_pause(stage.job_id)
    thread.join(DEADLINE_SECONDS)
    assert (stage.job.state, stage.job.result["tried"]) == (JobState.SUCCEEDED, "not tried")
    assert stage.published().artifact_id == stage.job.result["model_artifact"]


def test_shutdown_ends_the_trial_and_the_finished_work_is_committed(stage: Stage) -> None:
    worker, thread = stage.start()
    worker.stop()
    thread.join(DEADLINE_SECONDS)
    assert (stage.job.state, stage.job.result["tried"]) == (JobState.SUCCEEDED, "not tried")
    assert stage.published()


def test_a_job_of_higher_priority_does_not_wait_for_a_trial(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("martlet_core.supervisor.CHECK_SECONDS", 0.05)
    _, thread = stage.start(preempt_after_seconds=0.01)
    urgent = stage.submit(priority=9)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not stage.job.state.is_final:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (stage.job.state, stage.job.result["tried"]) == (JobState.SUCCEEDED, "not tried")
    while stage.jobs.get(urgent).state is JobState.QUEUED:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stage.workers[0].stop()
    thread.join(DEADLINE_SECONDS)


def test_an_object_store_that_is_away_holds_the_trial_up_until_a_pause(stage: Stage) -> None:
    handler = TryingHandler(trial=never_answers)
    stage.objects.down = True
    worker = stage.worker(handler)
    thread = threading.Thread(target=worker.on_ring, args=(stage.job_id,), daemon=True)
    thread.start()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while stage.job.progress.get("phase") != PHASE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stage.jobs.request_pause(stage.job_id)
    assert handler.begun.wait(DEADLINE_SECONDS), "it is asked all the same, and says that nothing was tried"
    stage.objects.down = False
    thread.join(DEADLINE_SECONDS)
    assert (stage.job.state, stage.job.result["tried"]) == (JobState.SUCCEEDED, "not tried")
    assert stage.published()


def test_a_lost_lease_ends_the_trial_and_the_next_attempt_has_the_name(stage: Stage) -> None:
    _, thread = stage.start()
    stage.jobs.finish(stage.job_id, 1, JobState.QUEUED)  # what the reaper does to a lapsed lease
    thread.join(DEADLINE_SECONDS)
    if stage.job.state is JobState.QUEUED:  # or the same worker has claimed it again
        with pytest.raises(NotFound):
            stage.published()
        stage.run(answers)
    stage.close()
    assert stage.job.state is JobState.SUCCEEDED
    assert stage.published().artifact_id == f"{stage.job_id}a2model"


def test_an_attempt_that_dies_in_its_trial_leaves_the_name_to_the_next(stage: Stage) -> None:
    with pytest.raises(Killed):
        stage.run(dies)
    assert stage.published().artifact_id == f"{stage.job_id}a1model"
    stage.jobs.finish(stage.job_id, 1, JobState.QUEUED)
    job = stage.run(answers)
    assert job.state is JobState.SUCCEEDED
    assert stage.published().artifact_id == job.result["model_artifact"] == f"{stage.job_id}a2model"


def test_the_name_goes_when_the_job_of_a_dead_trial_is_cancelled(stage: Stage) -> None:
    with pytest.raises(Killed):
        stage.run(dies)
    stage.jobs.finish(stage.job_id, 1, JobState.QUEUED)
    stage.jobs.request_cancel(stage.job_id)
    stage.reconcile()
    with pytest.raises(NotFound):
        stage.published()


def test_a_name_that_another_job_has_stays(stage: Stage) -> None:
    stage.jobs.request_cancel(stage.job_id)
    theirs = PublishedModel(f"toy:{stage.job_id}", "adapter", "acme", "a1", base_model="toy", source_job="another")
    stage.stores.models.publish(theirs)
    stage.reconcile()
    assert stage.published().artifact_id == "a1"
