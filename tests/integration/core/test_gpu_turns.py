"""One simulated GPU, shared by a replica and two workers, all of them real processes on a real Valkey: nobody gets what another
has, jobs take turns, and what a killed process held comes back.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from martlet_core.gpu_devices import find_machine
from martlet_core.gpu_leases import RedisGpuLeases
from martlet_core.gpu_settings import GpuSettings
from martlet_core.gpus import GpuLease
from martlet_core.job_bus import CeleryBell
from martlet_core.job_service import JobService
from martlet_core.jobs import Job, JobState
from martlet_core.stores import open_stores
from martlet_core.testing.gpu_lease_suite import most_used
from martlet_core.testing.toy_stage import STAGE, toy_job

DEADLINE_SECONDS = 60.0
LEASE_SECONDS = 3.0


class House:
    """A machine with one simulated GPU."""

    def __init__(self, tmp_path: Path, redis_url: str, s3_settings: dict[str, str]) -> None:
        self._tmp_path = tmp_path
        self._trace = tmp_path / "trace"
        settings = GpuSettings(
            redis_url=redis_url, cache_dir=tmp_path / "cache", gpus="simulated:1", gpu_host="gpu1", **s3_settings
        )  # type: ignore[arg-type]
        machine = find_machine(settings, {})
        assert machine
        self.leases = RedisGpuLeases.from_url(redis_url, machine.id)
        self.stores = open_stores(settings)
        self._bell = CeleryBell(redis_url)
        self.service = JobService(STAGE, self.stores, self._bell)
        self._environ = {
            "MARTLET_REDIS_URL": redis_url,
            "MARTLET_GPUS": "simulated:1",
            "MARTLET_GPU_HOST": "gpu1",
            "MARTLET_LEASE_SECONDS": str(LEASE_SECONDS),
            **{f"MARTLET_{name.upper()}": value for name, value in s3_settings.items()},
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        self.samples: list[tuple[GpuLease, ...]] = []
        self._stopped = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def start(self, *command: str, **settings: str) -> subprocess.Popen[bytes]:
        number = len(self.processes)
        places = {
            "MARTLET_CACHE_DIR": str(self._tmp_path / f"cache{number}"),
            "MARTLET_WORK_DIR": str(self._tmp_path / f"work{number}"),
        }
        with (self._tmp_path / f"log{number}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env={**os.environ, **self._environ, **places, **settings},
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self.start("martlet_core.testing.toy_stage", "--reconcile")

    def start_replica(self) -> subprocess.Popen[bytes]:
        process = self.start(
            *("martlet_inference", "serve"),
            MARTLET_ENGINE="echo",
            MARTLET_MODEL="m",
            MARTLET_RESOLVE_MODELS="false",
            MARTLET_GRPC_ADDRESS="127.0.0.1:0",
        )
        self.wait_until(lambda: self.holders("inference replica"), "the replica's lease")
        return process

    def submit(self, **spec: object) -> str:
        new = toy_job(
            **{"steps": 60, "step_seconds": 0.02, "checkpoint_every": 10, "gpus": 1, "trace": str(self._trace), **spec}
        )
        return asyncio.run(self.service.create("acme", new)).id

    def job(self, job_id: str) -> Job:
        return self.stores.jobs.get(job_id)

    def holders(self, kind: str) -> list[GpuLease]:
        return [lease for lease in self.leases.leases() if lease.label.startswith(kind)]

    def turns(self) -> int:
        """How often the GPU changed hands: each recipe writes a line a step, and a turn is a stretch of steps in order."""
        steps = [tuple(map(int, line.split())) for line in self._trace.read_text().splitlines()]
        following = [(attempt, step + 1) for attempt, step in steps]
        return 1 + sum(step != expected for step, expected in zip(steps[1:], following[:-1], strict=True))

    def start_time(self, job_id: str) -> float:
        return self.job(job_id).start_time

    def await_end(self, *job_ids: str) -> None:
        self.wait_until(lambda: all(self.job(job_id).state.is_final for job_id in job_ids), "the jobs' ends")
        for job_id in job_ids:
            assert self.job(job_id).state is JobState.SUCCEEDED, self.job(job_id).error

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-3000:] for path in sorted(self._tmp_path.glob("log*")))
                pytest.fail(f"waited in vain for: {what}\n{self.leases.leases()}\n{logs}")
            time.sleep(0.02)

    def close(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait(DEADLINE_SECONDS)
        self._stopped.set()
        self._sampler.join(DEADLINE_SECONDS)
        self._bell.close()
        self.leases.close()

    def _sample(self) -> None:
        """Record who holds what, over the whole time."""
        while not self._stopped.wait(0.02):
            self.samples.append(tuple(self.leases.leases()))


@pytest.fixture
def house(tmp_path: Path, redis_url: str, s3_settings: dict[str, str]) -> Iterator[House]:
    house = House(tmp_path, redis_url, s3_settings)
    yield house
    house.close()


def test_two_jobs_take_turns_beside_a_replica(house: House) -> None:
    replica = house.start_replica()
    for _ in range(2):
        house.start_worker()
    jobs = [house.submit() for _ in range(2)]
    house.await_end(*jobs)
    first, second = sorted(jobs, key=house.start_time)
    assert house.turns() == 2, "they computed at the same time"
    (held,) = house.holders("inference replica")
    reason = f"waiting for a GPU: GPU 0 of gpu1 is held by {held.label} (0.35) and counting job {first} (0.65)"
    assert reason in [event.message for event in house.stores.jobs.events(second, limit=1000)]
    assert house.job(second).queued_reason == ""
    for job_id in jobs:
        assert house.job(job_id).result["visible_gpus"] == "0"
        assert house.job(job_id).result["gpu_memory_share"] == "0.6"
    assert max(map(most_used, house.samples)) == 1.0, "a job beside the replica, and never more"
    replica.send_signal(signal.SIGTERM)
    assert replica.wait(DEADLINE_SECONDS) == 0
    house.wait_until(lambda: not house.leases.leases(), "all of it to be given back")


def test_the_gpu_of_a_killed_worker_comes_back(house: House) -> None:
    for _ in range(2):
        house.start_worker()
    jobs = [house.submit() for _ in range(2)]
    house.wait_until(lambda: any(house.job(job_id).checkpoints for job_id in jobs), "a checkpoint")
    running = next(job_id for job_id in jobs if house.job(job_id).checkpoints)
    (waiting,) = set(jobs) - {running}
    assert house.job(waiting).state is JobState.QUEUED
    pid = int(house.job(running).lease_owner.split("-")[-2])
    (worker,) = [process for process in house.processes if process.pid == pid]
    worker.kill()
    worker.wait(DEADLINE_SECONDS)
    house.await_end(*jobs)
    assert house.job(running).attempt == 2
    house.wait_until(lambda: not house.leases.leases(), "the GPU to be given back")
    assert max(map(most_used, house.samples)) == 0.65
    assert house.turns() == 3


def test_a_killed_replicas_share_comes_back(house: House) -> None:
    replica = house.start_replica()
    (first,) = house.holders("inference replica")
    replica.kill()
    replica.wait(DEADLINE_SECONDS)
    house.start_worker()
    job_id = house.submit(steps=100_000)
    house.wait_until(lambda: house.holders("counting job"), "the job's lease")
    house.start_replica()
    house.wait_until(
        lambda: (
            first.holder not in {lease.holder for lease in house.leases.leases()} and house.holders("inference replica")
        ),
        "the new replica's lease, beside the job",
    )
    assert house.job(job_id).state is JobState.RUNNING
    assert max(map(most_used, house.samples)) == 1.0
