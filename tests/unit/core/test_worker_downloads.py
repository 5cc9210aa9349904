"""A worker that is asked to stop while it downloads: it leaves the rest of the bytes where they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.ids import new_id
from martlet_core.jobs import Job, JobState, LeaseSignal
from martlet_core.models import ObjectModelRegistry
from martlet_core.stores import Stores
from martlet_core.testing.bell import MemoryBell
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_core.testing.toy_stage import KIND, QUEUE, STAGE, ToyHandler
from martlet_core.worker import Worker, WorkerOptions

DEADLINE_SECONDS = 30.0
CONTENT = b"0123456789abcdef" * 4
RANGE_BYTES = 16


class HeldObjects(MemoryObjectStore):
    """Downloads in small ranges, the second of which waits for ``go_on``."""

    range_bytes = RANGE_BYTES

    def __init__(self) -> None:
        super().__init__()
        self.held, self.go_on = threading.Event(), threading.Event()
        self.ranges: list[int] = []

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        self.ranges.append(offset)
        if offset == RANGE_BYTES:
            self.held.set()
            assert self.go_on.wait(DEADLINE_SECONDS)
        return super().get_range(key, offset, length)


class TellingJobs(MemoryJobStore):
    """Sets ``heard`` once the worker has taken in that it shall stop: when it asks again after the answer that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = threading.Event()
        self._said = False

    def heartbeat(self, *args: Any, **kwargs: Any) -> LeaseSignal:
        if self._said:
            self.heard.set()
        signal = super().heartbeat(*args, **kwargs)
        self._said = signal is not LeaseSignal.OK
        return signal


class Kit:
    """Stores, a job that begins with a download, and a worker that has come as far as its second range."""

    def __init__(self, tmp_path: Path, what: str) -> None:
        self.jobs, self.objects = TellingJobs(), HeldObjects()
        self.objects.go_on = self.jobs.heard
        self._tmp_path = tmp_path
        artifacts = ContentAddressedStore(self.objects, tmp_path / "cache")
        self.stores = Stores(self.jobs, self.objects, artifacts, ObjectModelRegistry(self.objects))
        source = tmp_path / "source"
        source.mkdir()
        (source / "state.json").write_bytes(CONTENT)
        artifact = artifacts.put_directory(source, kind="dataset", tenant="acme")
        spec = {"steps": 2, "checkpoint_every": 5}
        self.job_id = new_id()
        self.jobs.create(
            Job(self.job_id, STAGE, KIND, "acme", spec | ({"input": artifact.id} if what == "input" else {}), QUEUE)
        )
        if what == "checkpoint":
            self.jobs.claim(self.job_id, "before", 30.0)
            entry = {"artifact_id": artifact.id, "step": 1, "create_time": 1.0, "metrics": {}, "is_best": False}
            self.jobs.update(self.job_id, 1, checkpoints=[entry])
            self.jobs.finish(self.job_id, 1, JobState.QUEUED)
        self.worker = self.new_worker()
        self.thread = threading.Thread(target=self.worker.on_ring, args=(self.job_id,), daemon=True)
        self.thread.start()
        assert self.objects.held.wait(DEADLINE_SECONDS)

    def new_worker(self) -> Worker:
        options = WorkerOptions(QUEUE, self._tmp_path / new_id(), lease_seconds=1.5, idle_poll_seconds=60.0)
        worker = Worker(self.stores, MemoryBell(), [ToyHandler()], options)
        worker.start()
        return worker

    def end(self) -> Job:
        """The job as the worker left it, which asked for no range behind the one that was held."""
        self.thread.join(DEADLINE_SECONDS)
        assert not self.thread.is_alive()
        assert self.objects.ranges == [0, RANGE_BYTES]
        assert not list(self._tmp_path.glob("cache/*"))
        return self.jobs.get(self.job_id)


@pytest.fixture(params=["input", "checkpoint"])
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path, request.param)
    yield kit
    kit.objects.go_on.set()
    kit.worker.stop()
    kit.thread.join(DEADLINE_SECONDS)


def test_cancel_ends_a_download(kit: Kit) -> None:
    kit.jobs.request_cancel(kit.job_id)
    assert kit.end().state is JobState.CANCELLED


def test_pause_ends_a_download(kit: Kit) -> None:
    kit.jobs.request_pause(kit.job_id)
    job = kit.end()
    assert (job.state, job.lost_attempts) == (JobState.PAUSED, 0)


def test_shutdown_ends_a_download_and_another_worker_begins_anew(kit: Kit) -> None:
    kit.worker.stop()
    kit.objects.go_on.set()
    job = kit.end()
    assert (job.state, job.lost_attempts) == (JobState.QUEUED, 0)
    kit.new_worker().on_ring(kit.job_id)
    assert kit.objects.ranges == [0, RANGE_BYTES, *range(0, len(CONTENT), RANGE_BYTES)]
