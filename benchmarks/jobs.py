"""Create -> RUNNING latency, jobs a second, and the idle worker's memory, beside a raw Celery task on the same Valkey.

    python benchmarks/jobs.py [--rounds 3] [--jobs 40]

Both sides have one worker process with the same pool. Ours stores the spec in SeaweedFS, writes the record, rings, is
claimed, runs a recipe in a process of its own, stores its output and commits; the baseline's task does nothing, or
starts a bare Python process, which is what the isolation costs by itself. The sides take turns in each round; medians
count.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery
from environment import machine, versions, write
from martlet_core.job_bus import CeleryBell
from martlet_core.job_service import JobService
from martlet_core.settings import CoreSettings
from martlet_core.stores import Stores, open_stores
from martlet_core.testing.servers import start_seaweedfs, start_valkey
from martlet_core.testing.toy_stage import STAGE, toy_job

RESULTS = Path(__file__).parent / "results" / "jobs.json"
ACCESS_KEY, SECRET_KEY = "bench", "bench-secret"
DEADLINE_SECONDS = 120.0


def main() -> None:
    """Run it, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="Jobs beside raw Celery tasks.")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--jobs", type=int, default=40, help="jobs of each kind in a round (default 40)")
    parser.add_argument("--raw-worker", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.raw_worker:
        raw_app(options.raw_worker).worker_main(
            ["worker", "-P", "threads", "-c", "1", "-l", "ERROR", "--without-gossip", "--without-mingle"]
        )
        return
    with tempfile.TemporaryDirectory(prefix="martlet-bench-") as directory:
        report(Bench(Path(directory)).run(options.rounds, options.jobs), options)


def raw_app(url: str) -> Celery:
    """Celery as its guide sets it up, with an eager acknowledgement as ours has."""
    app = Celery("raw", broker=url, set_as_current=False)
    app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=1, task_default_queue="raw")

    @app.task(name="raw.noop")
    def noop(path: str) -> None:
        _note(path)

    @app.task(name="raw.spawn")
    def spawn(path: str) -> None:
        _note(path)
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        _note(path + ".done")

    return app


def _note(path: str) -> None:
    with open(path, "a") as file:
        file.write(f"{time.time()}\n")


class Bench:
    """The servers, both workers and what was measured."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(self, rounds: int, jobs: int) -> dict[str, Any]:
        """Everything, from starting the servers to stopping them."""
        for name in ("valkey", "seaweedfs"):
            (self._directory / name).mkdir()
        valkey = start_valkey(self._directory / "valkey")
        seaweedfs = start_seaweedfs(self._directory / "seaweedfs", ACCESS_KEY, SECRET_KEY)
        try:
            settings = CoreSettings(
                redis_url=valkey.url,
                s3_endpoint=seaweedfs.url,
                s3_access_key=ACCESS_KEY,
                s3_secret_key=SECRET_KEY,
                cache_dir=self._directory / "cache",
            )  # pyright: ignore[reportCallIssue]
            return self._measure(settings, rounds, jobs)
        finally:
            for process in self._processes:
                process.terminate()
                process.wait(30)
            seaweedfs.kill()
            valkey.kill()

    def _measure(self, settings: CoreSettings, rounds: int, jobs: int) -> dict[str, Any]:
        stores = open_stores(settings)
        service = JobService(STAGE, stores, CeleryBell(settings.redis_url))
        worker = self._start([sys.executable, "-m", "martlet_core.testing.toy_stage"], settings)
        self._start([sys.executable, __file__, "--raw-worker", settings.redis_url], settings)
        raw = raw_app(settings.redis_url)
        asyncio.run(latency_of_job(service, stores))  # both are up and warm
        self._latency_of_task(raw, "raw.noop")
        time.sleep(2)
        figures: dict[str, Any] = {"idle_worker_rss_mb": _rss_mb(worker.pid)}
        latencies: dict[str, list[float]] = {"martlet": [], "celery": []}
        rates: dict[str, list[float]] = {"martlet": [], "celery_noop": [], "celery_process": []}
        for _ in range(rounds):
            for _ in range(jobs):
                latencies["martlet"].append(asyncio.run(latency_of_job(service, stores)))
                latencies["celery"].append(self._latency_of_task(raw, "raw.noop"))
            rates["martlet"].append(asyncio.run(rate_of_jobs(service, stores, jobs)))
            rates["celery_noop"].append(self._rate_of_tasks(raw, "raw.noop", jobs))
            rates["celery_process"].append(self._rate_of_tasks(raw, "raw.spawn", jobs))
        figures["worker_rss_after_jobs_mb"] = _rss_mb(worker.pid)
        for side, values in latencies.items():
            figures[f"{side}_to_running_ms"] = _spread([1000 * value for value in values])
        for side, values in rates.items():
            figures[f"{side}_per_second"] = round(statistics.median(values), 2)
        return figures

    def _start(self, command: list[str], settings: CoreSettings) -> subprocess.Popen[bytes]:
        environ = {
            **os.environ,
            "MARTLET_REDIS_URL": settings.redis_url,
            "MARTLET_S3_ENDPOINT": settings.s3_endpoint,
            "MARTLET_S3_ACCESS_KEY": ACCESS_KEY,
            "MARTLET_S3_SECRET_KEY": SECRET_KEY,
            "MARTLET_CACHE_DIR": str(self._directory / "worker-cache"),
            "MARTLET_WORK_DIR": str(self._directory / "work"),
        }
        log = (self._directory / f"worker-{len(self._processes)}.log").open("wb")
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def _latency_of_task(self, app: Celery, name: str) -> float:
        path = self._new_path()
        started = time.time()
        app.send_task(name, args=(str(path),), queue="raw")
        wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
        return float(path.read_text()) - started

    def _rate_of_tasks(self, app: Celery, name: str, count: int) -> float:
        path = self._new_path()
        done = Path(f"{path}.done") if name == "raw.spawn" else path
        started = time.time()
        for _ in range(count):
            app.send_task(name, args=(str(path),), queue="raw")
        wait_until(lambda: done.exists() and len(done.read_text().splitlines()) == count)
        return count / (float(done.read_text().splitlines()[-1]) - started)

    def _new_path(self) -> Path:
        return self._directory / f"note-{time.monotonic_ns()}"


async def latency_of_job(service: JobService, stores: Stores) -> float:
    """Seconds from calling ``create`` to RUNNING by the job store's clock, which is this machine's; then lets the job
    end.
    """
    started = time.time()
    job = await service.create("bench", toy_job(steps=0))
    wait_until(lambda: stores.jobs.get(job.id).state.is_final)
    return stores.jobs.get(job.id).start_time - started


async def rate_of_jobs(service: JobService, stores: Stores, count: int) -> float:
    """Jobs a second, from the first ``create`` to the last SUCCEEDED."""
    started = time.time()
    ids = [(await service.create("bench", toy_job(steps=0))).id for _ in range(count)]
    wait_until(lambda: all(stores.jobs.get(job_id).state.is_final for job_id in ids))
    ended = [stores.jobs.get(job_id) for job_id in ids]
    assert all(job.state.value == "SUCCEEDED" for job in ended), ended
    return count / (max(job.end_time for job in ended) - started)


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a job did not come to its end")
        time.sleep(0.01)


def _rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return round(int(line.split()[1]) / 1024, 1)
    raise ProcessLookupError(pid)


def _spread(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 2), "p95": round(cuts[94], 2), "max": round(max(values), 2)}


def report(figures: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table and write the JSON."""
    ours, raw = figures["martlet_to_running_ms"], figures["celery_to_running_ms"]
    print(f"{'':32}{'martlet':>12}{'raw celery':>14}{'ratio':>8}")
    for name in ("p50", "p95", "max"):
        print(
            f"{f'create -> RUNNING, {name} (ms)':32}{ours[name]:>12.2f}{raw[name]:>14.2f}{ours[name] / raw[name]:>8.1f}"
        )
    rate = figures["martlet_per_second"]
    for side, text in (("celery_process", "starts a process"), ("celery_noop", "does nothing")):
        other = figures[f"{side}_per_second"]
        print(f"{f'jobs/s (raw: {text})':32}{rate:>12.2f}{other:>14.2f}{rate / other:>8.2f}")
    print(f"{'idle worker, resident (MB)':32}{figures['idle_worker_rss_mb']:>12.1f}")
    record = {
        "rounds": options.rounds,
        "jobs_a_round": options.jobs,
        **figures,
        "ratio_to_running_p50": round(ours["p50"] / raw["p50"], 2),
        "ratio_jobs_per_second": {
            "raw_task_starts_a_process": round(rate / figures["celery_process_per_second"], 3),
            "raw_task_does_nothing": round(rate / figures["celery_noop_per_second"], 3),
        },
        "machine": machine(),
        "versions": versions(("celery", "kombu", "redis")),
    }
    write(RESULTS, record)


if __name__ == "__main__":
    main()
