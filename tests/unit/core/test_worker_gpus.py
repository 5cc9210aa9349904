"""Workers on a machine with GPUs: a job is claimed once it has what it needs, and waits in the queue until then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.gpu_devices import Gpu, GpuMachine
from martlet_core.gpus import GpuLease, GpuWish
from martlet_core.ids import new_id
from martlet_core.job_gpus import JobGpus
from martlet_core.job_proto import progress_to_proto
from martlet_core.jobs import Job, JobState
from martlet_core.models import ObjectModelRegistry
from martlet_core.stores import Stores
from martlet_core.testing.bell import MemoryBell
from martlet_core.testing.gpu_leases import MemoryGpuLeases
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_core.testing.toy_stage import KIND, QUEUE, STAGE, ToyHandler
from martlet_core.worker import Worker, WorkerOptions

DEADLINE_SECONDS = 30.0
LEASE_SECONDS = 30.0
LONG = 600.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.01)


def machine(count: int) -> GpuMachine:
    return GpuMachine("gpu1", "m", tuple(Gpu(i, f"uuid-{i}") for i in range(count)), count, simulated=True)


class Stage:
    """The toy stage in this process, on a machine with GPUs."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        objects = MemoryObjectStore()
        self.jobs = MemoryJobStore()
        artifacts = ContentAddressedStore(objects, tmp_path / "cache")
        self.stores = Stores(self.jobs, objects, artifacts, ObjectModelRegistry(objects))
        self.leases = MemoryGpuLeases()
        self.workers: list[Worker] = []
        self._threads: list[threading.Thread] = []

    def worker(self, *, gpus: int = 1, share: float = 0.65) -> Worker:
        options = WorkerOptions(
            QUEUE,
            self._tmp_path / f"work{len(self.workers)}",
            LEASE_SECONDS,
            stop_grace_seconds=10.0,
            idle_poll_seconds=60.0,
            gpu_poll_seconds=0.01,
        )
        job_gpus = JobGpus(self.leases, machine(gpus), share, LEASE_SECONDS)
        worker = Worker(self.stores, MemoryBell(), [ToyHandler()], options, job_gpus)
        worker.start()
        self.workers.append(worker)
        return worker

    def submit(self, priority: int = 5, **spec: Any) -> str:
        values = {"steps": 5, "gpus": 1, **spec}
        job = Job(new_id(), STAGE, KIND, "acme", values, QUEUE, priority=priority)
        self.jobs.create(job)
        return job.id

    def drain(self, worker: Worker) -> threading.Thread:
        thread = threading.Thread(target=worker.drain, daemon=True)
        thread.start()
        self._threads.append(thread)
        return thread

    def hold(self, *gpus: str, holder: str = "other", share: float = 1.0) -> GpuLease:
        wish = GpuWish(holder, f"training job {holder}", gpus or ("uuid-0",), max(1, len(gpus)), share)
        answer = self.leases.take(wish, LONG)
        assert isinstance(answer, GpuLease)
        return answer

    def await_reason(self, job_id: str) -> str:
        wait_until(lambda: self.jobs.get(job_id).queued_reason, "a reason")
        return self.jobs.get(job_id).queued_reason

    def logs(self, job_id: str) -> list[str]:
        return [event.message for event in self.jobs.events(job_id, limit=1000) if event.type == "log"]

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


def test_a_job_gets_a_gpu_and_gives_it_back(stage: Stage) -> None:
    job_id = stage.submit()
    stage.worker().drain()
    job = stage.jobs.get(job_id)
    assert job.state is JobState.SUCCEEDED, job.error
    assert job.result["visible_gpus"] == "0"
    assert float(job.result["gpu_memory_share"]) == pytest.approx(0.6)  # what CUDA itself takes is left to it
    assert "Runs on GPU 0 of gpu1 (0.65 of it)." in stage.logs(job_id)
    assert stage.leases.leases() == []


def test_a_job_on_several_gpus_sees_those_alone(stage: Stage) -> None:
    stage.hold("uuid-1")
    job_id = stage.submit(gpus=2)
    stage.worker(gpus=3, share=1.0).drain()
    assert stage.jobs.get(job_id).result["visible_gpus"] == "0,2"


def test_a_job_that_needs_none_sees_none_and_waits_for_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARTLET_GPU_MEMORY_SHARE", "0.5")  # only a lease may say that
    stage.hold()
    job_id = stage.submit(gpus=0)
    stage.worker().drain()
    job = stage.jobs.get(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.result["visible_gpus"] == ""
    assert job.result["gpu_memory_share"] is None


def test_a_job_that_waits_stays_queued_and_says_why(stage: Stage) -> None:
    stage.hold(holder="replica", share=0.35)
    stage.hold(holder="other", share=0.65)
    job_id = stage.submit()
    thread = stage.drain(stage.worker())
    reason = stage.await_reason(job_id)
    assert reason == (
        "waiting for a GPU: GPU 0 of gpu1 is held by training job replica (0.35) and training job other (0.65)"
    )
    job = stage.jobs.get(job_id)
    assert (job.state, job.attempt) == (JobState.QUEUED, 0)
    assert progress_to_proto(job, 1).queued_reason == reason
    assert stage.logs(job_id) == [reason]
    stage.leases.release("other")
    thread.join(DEADLINE_SECONDS)
    job = stage.jobs.get(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.queued_reason == ""


def test_the_reason_follows_the_holders(stage: Stage) -> None:
    stage.hold(holder="first", share=0.5)
    stage.hold(holder="second", share=0.5)
    job_id = stage.submit()
    stage.drain(stage.worker())
    assert "training job first" in stage.await_reason(job_id)
    stage.leases.release("first")
    wait_until(lambda: "first" not in stage.jobs.get(job_id).queued_reason, "the other reason")
    assert stage.jobs.get(job_id).queued_reason.endswith("is held by training job second (0.5)")
    assert len(stage.logs(job_id)) == 2


def test_a_waiting_job_comes_before_a_later_wish(stage: Stage) -> None:
    stage.hold(holder="first")
    job_id = stage.submit()
    stage.drain(stage.worker())
    stage.await_reason(job_id)
    later = GpuWish("later", "training job later", ("uuid-0",))
    stage.leases.take(later, LONG)
    stage.leases.release("first")
    wait_until(lambda: isinstance(stage.leases.take(later, LONG), GpuLease), "the GPU to be given back")
    # It has computed; its GPU is free before its outputs are stored and its end is written.
    assert stage.jobs.get(job_id).result["visible_gpus"] == "0"
    wait_until(lambda: stage.jobs.get(job_id).state is JobState.SUCCEEDED, "the job's end")


@pytest.mark.parametrize(("ask", "state"), [("request_cancel", "CANCELLED"), ("request_pause", "PAUSED")])
def test_a_waiting_job_can_be_steered_at_once_and_leaves_the_line(stage: Stage, ask: str, state: str) -> None:
    stage.hold()
    job_id = stage.submit()
    thread = stage.drain(stage.worker())
    stage.await_reason(job_id)
    job = getattr(stage.jobs, ask)(job_id)
    assert (job.state.value, job.queued_reason) == (state, "")
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive(), "the worker waits for a job that is gone"
    assert stage.leases.tickets() == []


def test_a_worker_that_is_stopped_waits_no_longer(stage: Stage) -> None:
    stage.hold()
    job_id = stage.submit()
    worker = stage.worker()
    thread = stage.drain(worker)
    stage.await_reason(job_id)
    worker.stop()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    job = stage.jobs.get(job_id)
    assert (job.state, job.queued_reason) == (JobState.QUEUED, "")
    assert stage.leases.tickets() == []


def test_a_job_that_another_worker_claims_is_waited_for_no_longer(stage: Stage) -> None:
    stage.hold()
    job_id = stage.submit()
    thread = stage.drain(stage.worker())
    stage.await_reason(job_id)
    assert stage.jobs.claim(job_id, "a worker of another machine", LONG)
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    assert stage.leases.tickets() == []


def test_a_more_important_job_is_waited_for_instead(stage: Stage) -> None:
    stage.hold()
    low = stage.submit(priority=1)
    stage.drain(stage.worker())
    stage.await_reason(low)
    high = stage.submit(priority=9)
    stage.await_reason(high)
    wait_until(lambda: stage.jobs.get(low).queued_reason == "", "the other's reason to go")
    stage.leases.release("other")
    wait_until(lambda: stage.jobs.get(low).state is JobState.SUCCEEDED, "both jobs")
    assert stage.jobs.get(high).start_time < stage.jobs.get(low).start_time


def test_two_workers_take_turns(stage: Stage, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    jobs = [stage.submit(step_seconds=0.02, trace=str(trace)) for _ in range(4)]
    threads = [stage.drain(stage.worker()) for _ in range(2)]
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert all(stage.jobs.get(job_id).state is JobState.SUCCEEDED for job_id in jobs)
    steps = [int(line.split()[1]) for line in trace.read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5] * 4, "they computed at the same time"


def test_the_gpu_is_given_back_before_the_results_are_stored(stage: Stage) -> None:
    held: list[Any] = []

    class Handler(ToyHandler):
        def finish(self, *args: Any) -> Any:
            held.append(stage.leases.leases())
            return super().finish(*args)

    job_id = stage.submit()
    worker = stage.worker()
    worker._handlers = {KIND: Handler()}
    worker.drain()
    assert stage.jobs.get(job_id).state is JobState.SUCCEEDED
    assert held == [[]]


def test_a_job_that_asks_for_more_than_there_ever_is_fails_and_says_so(stage: Stage) -> None:
    job_id = stage.submit(gpus=2)
    other = stage.submit()
    stage.worker().drain()
    job = stage.jobs.get(job_id)
    assert job.state is JobState.FAILED
    assert job.error
    assert job.error["reason"] == "NO_GPU"
    assert job.error["message"] == "The job asks for 2 GPUs; its worker may use 1, on gpu1."
    assert stage.jobs.get(other).state is JobState.SUCCEEDED


def test_a_job_whose_gpus_went_to_another_is_killed(stage: Stage, tmp_path: Path) -> None:
    """They can only go to another when the lease was not renewed, as if the worker had been asleep."""
    trace = tmp_path / "trace"
    job_id = stage.submit(steps=10_000, step_seconds=0.01, ignore_stop=True, trace=str(trace))
    thread = stage.drain(stage.worker())
    wait_until(lambda: stage.jobs.get(job_id).progress.get("step"), "the first step")
    stage.leases.give_to(GpuWish("other", "training job other", ("uuid-0",)), LONG)
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    steps = trace.read_text()
    assert [lease.holder for lease in stage.leases.leases()] == ["other"]
    assert stage.jobs.get(job_id).state is JobState.RUNNING, "it is queued again when its lease lapses"
    assert trace.read_text() == steps
