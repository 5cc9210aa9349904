"""The worker with in-memory stores and the toy recipe in real processes: a job's life, and each way to leave it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.errors import NotFound, Unavailable
from martlet_core.ids import new_id
from martlet_core.jobs import Job, JobState
from martlet_core.models import ObjectModelRegistry
from martlet_core.stores import Stores
from martlet_core.testing.bell import MemoryBell
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_core.testing.toy_recipe import value_after
from martlet_core.testing.toy_stage import KIND, QUEUE, STAGE, ToyHandler
from martlet_core.worker import Worker, WorkerOptions

DEADLINE_SECONDS = 30.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.01)


class FlakyObjects(MemoryObjectStore):
    """An object store that is away while ``down`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.down = threading.Event()
        self.refused = threading.Event()

    def put_if_absent(self, key: str, data: bytes, *, content_type: str = "application/json") -> bool:
        if self.down.is_set():
            self.refused.set()
            raise Unavailable("the object store is away")
        return super().put_if_absent(key, data, content_type=content_type)


class FlakyJobs(MemoryJobStore):
    """A job store that is away while ``down`` is set."""

    down = False

    def heartbeat(self, *args: Any, **kwargs: Any) -> Any:
        if self.down:
            raise Unavailable("the job store is away")
        return super().heartbeat(*args, **kwargs)

    def append_event(self, *args: Any, **kwargs: Any) -> Any:
        if self.down:
            raise Unavailable("the job store is away")
        return super().append_event(*args, **kwargs)


class Stage:
    """A stage in this process: stores, and as many workers as wanted."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self.jobs = FlakyJobs()
        self.objects = FlakyObjects()
        self.artifacts = ContentAddressedStore(self.objects, tmp_path / "cache")
        self.stores = Stores(self.jobs, self.objects, self.artifacts, ObjectModelRegistry(self.objects))
        self.bell = MemoryBell()
        self.workers: list[Worker] = []
        self._threads: list[threading.Thread] = []

    def worker(self, *, lease_seconds: float = 3.0, stop_grace_seconds: float = 10.0) -> Worker:
        options = WorkerOptions(
            QUEUE,
            self._tmp_path / f"work{len(self.workers)}",
            lease_seconds,
            stop_grace_seconds,
            idle_poll_seconds=60.0,
        )
        worker = Worker(self.stores, self.bell, [ToyHandler()], options)
        worker.start()
        self.workers.append(worker)
        return worker

    def submit(self, max_attempts: int = 5, **spec: Any) -> str:
        job = Job(new_id(), STAGE, KIND, "acme", {"steps": 20, "checkpoint_every": 5, **spec}, QUEUE)
        self.jobs.create(replace(job, max_attempts=max_attempts))
        return job.id

    def run(self, job_id: str, worker: Worker | None = None) -> Job:
        (worker or self.worker()).on_ring(job_id)
        return self.jobs.get(job_id)

    def start(self, job_id: str, worker: Worker | None = None) -> threading.Thread:
        thread = threading.Thread(target=(worker or self.worker()).on_ring, args=(job_id,), daemon=True)
        thread.start()
        self._threads.append(thread)
        return thread

    def await_step(self, job_id: str, step: int) -> None:
        wait_until(lambda: self.jobs.get(job_id).progress.get("step", 0) >= step, f"step {step}")

    def await_checkpoint(self, job_id: str) -> None:
        wait_until(lambda: self.jobs.get(job_id).checkpoints, "a checkpoint")

    def messages(self, job_id: str, event_type: str | None = None) -> list[str]:
        events = self.jobs.events(job_id, limit=1000)
        return [event.message for event in events if event_type in (None, event.type)]

    def kept_artifacts(self) -> set[str]:
        keys = self.objects.list("artifacts/")
        return {key.split("/")[1] for key in keys if key.endswith("manifest.json")}

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


def finished_value(stage: Stage, job: Job) -> int:
    assert job.state is JobState.SUCCEEDED, job.error
    return int(job.result["value"])


def test_job_succeeds_and_its_model_is_published(stage: Stage) -> None:
    job_id = stage.submit()
    job = stage.run(job_id)
    assert finished_value(stage, job) == value_after(20)
    assert job.attempt == 1
    assert job.progress["step"] == 20
    assert job.result["started_at"] == 0
    model = stage.stores.models.get(f"toy:{job_id}", tenant="acme")
    assert model.artifact_id == job.result["model_artifact"]
    assert stage.artifacts.get(model.artifact_id, tenant="acme").source_job == job_id


def test_everything_it_said_is_in_the_events_in_order(stage: Stage) -> None:
    job_id = stage.submit(steps=10)
    stage.run(job_id)
    events = stage.jobs.events(job_id, limit=1000)
    metrics = [event.data["step"] for event in events if event.type == "metrics"]
    assert metrics == list(range(1, 11))
    stored = [event.data["step"] for event in events if event.type == "checkpoint"]
    passed_over = [5] if any("step 5 was passed over" in event.message for event in events) else []
    assert passed_over + stored == [5, 10], (
        "a checkpoint whose upload hasn't begun makes way for a newer one, and it is said"
    )
    assert ("log", "starting behind step 0") in [(event.type, event.message) for event in events]
    assert (events[-1].type, events[-1].data["to"]) == ("state", "SUCCEEDED")


def test_last_two_checkpoints_are_kept_with_names_and_the_rest_is_deleted(stage: Stage) -> None:
    job = stage.run(stage.submit(steps=40, step_seconds=0.02))
    events = stage.jobs.events(job.id, limit=1000)
    stored = [event.data["step"] for event in events if event.type == "checkpoint"]
    assert len(stored) > 2, "others may have been passed over for newer ones"
    assert stored[-1] == 40
    assert [entry["step"] for entry in job.checkpoints] == stored[-2:]
    kept = {entry["artifact_id"] for entry in job.checkpoints}
    assert stage.kept_artifacts() == kept | {job.result["model_artifact"]}
    assert stage.stores.models.get(f"toy:{job.id}:ckpt-step-40", tenant="acme").artifact_id in kept
    with pytest.raises(NotFound):
        stage.stores.models.get(f"toy:{job.id}:ckpt-step-{stored[0]}", tenant="acme")


def test_scratch_space_is_empty_afterwards(stage: Stage, tmp_path: Path) -> None:
    stage.run(stage.submit())
    assert list((tmp_path / "work0").iterdir()) == []


def test_second_bell_for_the_same_job_trains_nothing(stage: Stage, tmp_path: Path) -> None:
    job_id = stage.submit(trace=str(tmp_path / "trace"))
    worker = stage.worker()
    for _ in range(3):
        stage.run(job_id, worker)
    assert len((tmp_path / "trace").read_text().splitlines()) == 20


def test_two_workers_at_one_bell_train_once(stage: Stage, tmp_path: Path) -> None:
    job_id = stage.submit(trace=str(tmp_path / "trace"))
    threads = [stage.start(job_id) for _ in range(2)]
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert stage.jobs.get(job_id).state is JobState.SUCCEEDED
    assert len((tmp_path / "trace").read_text().splitlines()) == 20


def test_queue_drains_without_further_bells(stage: Stage) -> None:
    first, second = stage.submit(steps=3), stage.submit(steps=3)
    stage.run(first)
    assert stage.jobs.get(second).state is JobState.SUCCEEDED


def test_killed_recipe_goes_on_from_its_last_checkpoint(stage: Stage, tmp_path: Path) -> None:
    job = stage.run(stage.submit(kill_at=13, step_seconds=0.02, trace=str(tmp_path / "trace")))
    assert finished_value(stage, job) == value_after(20)
    assert (job.attempt, job.lost_attempts) == (2, 1)
    assert job.result["started_at"] == 10
    steps = [tuple(map(int, line.split())) for line in (tmp_path / "trace").read_text().splitlines()]
    assert steps == [(1, n) for n in range(1, 14)] + [(2, n) for n in range(11, 21)]
    assert any("about to be killed" in message for message in stage.messages(job.id))


def test_job_that_dies_every_time_fails_with_a_readable_reason(stage: Stage) -> None:
    job = stage.run(stage.submit(max_attempts=2, kill_at=3, in_attempts=[1, 2, 3]))
    assert job.state is JobState.FAILED
    assert job.attempt == 2
    assert job.error is not None
    assert "SIGKILL" in job.error["message"]
    assert "about to be killed" in job.error["message"]


def test_crash_in_the_recipe_is_tried_again(stage: Stage) -> None:
    job = stage.run(stage.submit(raise_at=7))
    assert finished_value(stage, job) == value_after(20)
    assert any("RuntimeError: the toy broke" in message for message in stage.messages(job.id))


def test_refusal_by_the_recipe_is_final_at_once(stage: Stage) -> None:
    job = stage.run(stage.submit(refuse_at=3, in_attempts=[1, 2, 3]))
    assert (job.state, job.attempt) == (JobState.FAILED, 1)
    assert job.error is not None
    assert job.error["code"] == "INVALID_ARGUMENT"
    assert job.error["violations"][0]["field"] == "spec.steps"


def test_a_failure_may_leave_a_report(stage: Stage) -> None:
    job = stage.run(stage.submit(report_at=3))
    assert (job.state, job.attempt) == (JobState.FAILED, 1)
    assert job.error is not None
    name = job.error["metadata"]["report_artifact"]
    assert (job.result["value"], job.result["report_artifact"]) == ("none", name)
    artifact = stage.artifacts.get(name.removeprefix("artifacts/"), tenant="acme")
    assert b"".join(stage.artifacts.open_file(artifact, "report.json")) == b'{"step": 3}'


def test_a_report_of_a_job_that_was_cancelled_meanwhile_is_not_kept(stage: Stage) -> None:
    stage.objects.down.set()  # the upload waits until the cancel has come
    job_id = stage.submit(report_at=3, checkpoint_every=100)
    thread = stage.start(job_id)
    wait_until(stage.objects.refused.is_set, "the upload")
    stage.jobs.request_cancel(job_id)
    thread.join(DEADLINE_SECONDS)
    job = stage.jobs.get(job_id)
    assert job.state is JobState.CANCELLED
    assert "report_artifact" not in job.result
    stage.objects.down.clear()
    assert not stage.artifacts.list(tenant="acme").artifacts


def test_missing_input_fails_the_job(stage: Stage) -> None:
    job = stage.run(stage.submit(input="0123456789abcdefghjk"))
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["reason"] == "INPUT_GONE"


def test_unknown_kind_fails_with_the_known_ones(stage: Stage) -> None:
    job = Job(new_id(), STAGE, "juggling", "acme", {}, QUEUE)
    stage.jobs.create(job)
    failed = stage.run(job.id)
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert KIND in failed.error["message"]


def test_cancel_stops_the_recipe(stage: Stage) -> None:
    job_id = stage.submit(steps=10_000, step_seconds=0.01)
    thread = stage.start(job_id)
    stage.await_step(job_id, 3)
    stage.jobs.request_cancel(job_id)
    thread.join(DEADLINE_SECONDS)
    assert stage.jobs.get(job_id).state is JobState.CANCELLED


def test_pause_writes_a_checkpoint_and_resume_goes_on_from_it(stage: Stage, tmp_path: Path) -> None:
    job_id = stage.submit(steps=300, step_seconds=0.01, checkpoint_every=1000, trace=str(tmp_path / "trace"))
    worker = stage.worker()
    thread = stage.start(job_id, worker)
    stage.await_step(job_id, 5)
    stage.jobs.request_pause(job_id)
    thread.join(DEADLINE_SECONDS)
    paused = stage.jobs.get(job_id)
    assert paused.state is JobState.PAUSED
    (checkpoint,) = paused.checkpoints
    stage.jobs.request_resume(job_id)
    job = stage.run(job_id, worker)
    assert finished_value(stage, job) == value_after(300)
    assert job.lost_attempts == 0
    assert job.result["started_at"] == checkpoint["step"]
    assert len((tmp_path / "trace").read_text().splitlines()) == 300


def test_resume_while_pausing_queues_it_again_at_once(stage: Stage) -> None:
    job_id = stage.submit(steps=300, step_seconds=0.01)
    thread = stage.start(job_id)
    stage.await_step(job_id, 5)
    stage.jobs.request_pause(job_id)
    stage.jobs.request_resume(job_id)
    thread.join(DEADLINE_SECONDS)
    assert finished_value(stage, stage.jobs.get(job_id)) == value_after(300)


def test_recipe_that_ignores_the_pause_is_killed_after_the_grace(stage: Stage) -> None:
    job_id = stage.submit(steps=10_000, step_seconds=0.01, ignore_stop=True)
    thread = stage.start(job_id, stage.worker(stop_grace_seconds=0.3))
    stage.await_checkpoint(job_id)
    stage.jobs.request_pause(job_id)
    thread.join(DEADLINE_SECONDS)
    assert stage.jobs.get(job_id).state is JobState.PAUSED
    assert any("did not stop within" in message for message in stage.messages(job_id))


def test_shutdown_gives_the_job_back_and_rings(stage: Stage) -> None:
    job_id = stage.submit(steps=300, step_seconds=0.01, checkpoint_every=1000)
    worker = stage.worker()
    thread = stage.start(job_id, worker)
    stage.await_step(job_id, 5)
    worker.stop()
    thread.join(DEADLINE_SECONDS)
    given_back = stage.jobs.get(job_id)
    assert (given_back.state, given_back.lost_attempts) == (JobState.QUEUED, 0)
    assert stage.bell.rings == [(QUEUE, job_id)]
    job = stage.run(job_id)
    assert finished_value(stage, job) == value_after(300)
    assert job.result["started_at"] >= 5


def test_stopped_worker_claims_nothing(stage: Stage) -> None:
    job_id = stage.submit()
    worker = stage.worker()
    worker.stop()
    assert stage.run(job_id, worker).state is JobState.QUEUED


def test_lost_lease_kills_the_recipe_and_nothing_is_published(stage: Stage, tmp_path: Path) -> None:
    job_id = stage.submit(steps=10_000, step_seconds=0.01, trace=str(tmp_path / "trace"))
    thread = stage.start(job_id, stage.worker(lease_seconds=1.0))
    stage.await_checkpoint(job_id)
    stage.jobs.down = True
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    stage.jobs.down = False
    assert stage.jobs.get(job_id).state is JobState.RUNNING  # the reaper's to change
    steps = (tmp_path / "trace").read_text()
    time.sleep(0.1)
    assert (tmp_path / "trace").read_text() == steps, "the recipe still runs"


def test_short_outage_of_the_job_store_is_survived(stage: Stage) -> None:
    job_id = stage.submit(steps=300, step_seconds=0.01)
    thread = stage.start(job_id)
    stage.await_step(job_id, 3)
    stage.jobs.down = True
    time.sleep(1.2)  # part of the scenario: longer than a heartbeat, shorter than the lease
    stage.jobs.down = False
    thread.join(DEADLINE_SECONDS)
    job = stage.jobs.get(job_id)
    assert finished_value(stage, job) == value_after(300)
    assert job.attempt == 1
    steps = [event.data["step"] for event in stage.jobs.events(job_id, limit=1000) if event.type == "metrics"]
    assert steps == list(range(1, 301)), "events were lost in the outage"


def test_outage_of_the_object_store_delays_but_does_not_fail(stage: Stage) -> None:
    job_id = stage.submit(steps=20)
    stage.objects.down.set()
    thread = stage.start(job_id)
    assert stage.objects.refused.wait(DEADLINE_SECONDS)
    stage.await_step(job_id, 20)
    stage.objects.down.clear()
    thread.join(DEADLINE_SECONDS)
    job = stage.jobs.get(job_id)
    assert finished_value(stage, job) == value_after(20)
    assert job.attempt == 1


def test_cancel_during_an_outage_of_the_object_store(stage: Stage) -> None:
    job_id = stage.submit(steps=20)
    stage.objects.down.set()
    thread = stage.start(job_id)
    assert stage.objects.refused.wait(DEADLINE_SECONDS)
    stage.jobs.request_cancel(job_id)
    thread.join(DEADLINE_SECONDS)
    assert stage.jobs.get(job_id).state is JobState.CANCELLED


def test_damaged_checkpoint_falls_back_to_the_one_before(stage: Stage) -> None:
    job_id = stage.submit(steps=300, step_seconds=0.01, checkpoint_every=5)
    worker = stage.worker()
    thread = stage.start(job_id, worker)
    wait_until(lambda: len(stage.jobs.get(job_id).checkpoints) == 2, "two checkpoints")
    stage.jobs.request_pause(job_id)
    thread.join(DEADLINE_SECONDS)
    older, newest = stage.jobs.get(job_id).checkpoints
    stage.artifacts.delete(newest["artifact_id"])
    stage.jobs.request_resume(job_id)
    job = stage.run(job_id, worker)
    assert finished_value(stage, job) == value_after(300)
    assert job.result["started_at"] == older["step"]
    assert any("can't be used" in message for message in stage.messages(job_id, "log"))


def test_zombie_cannot_commit_what_another_attempt_took_over(stage: Stage, tmp_path: Path) -> None:
    """The worker is held up between its recipe's end and its commit, while the job passes to another attempt."""
    held, go_on = threading.Event(), threading.Event()

    class SlowHandler(ToyHandler):
        def finish(self, job: Job, values: Any, artifacts: Any) -> Any:
            if job.attempt == 1:
                held.set()
                go_on.wait(DEADLINE_SECONDS)
            return super().finish(job, values, artifacts)

    options = WorkerOptions(QUEUE, tmp_path / "zombie", lease_seconds=5.0)
    zombie = Worker(stage.stores, stage.bell, [SlowHandler()], options)
    zombie.start()
    job_id = stage.submit()
    thread = stage.start(job_id, zombie)
    assert held.wait(DEADLINE_SECONDS)
    stage.jobs.finish(job_id, 1, JobState.QUEUED)  # what the reaper does to a lapsed lease
    job = stage.run(job_id)
    go_on.set()
    thread.join(DEADLINE_SECONDS)
    assert finished_value(stage, job) == value_after(20)
    assert stage.jobs.get(job_id).attempt == 2
    model = stage.stores.models.get(f"toy:{job_id}", tenant="acme")
    assert model.artifact_id == job.result["model_artifact"] == f"{job_id}a2model"
    zombie.stop()
