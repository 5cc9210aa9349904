"""Seconds between the end of a run's step and the creation of the next one's job: what orchestration costs.

    python benchmarks/runs.py [--steps 10] [--runs 20]

The gateway's ``work`` runs as a process on real Valkey and SeaweedFS; the stages are doubles over real gRPC whose jobs
take a fifth of a second, so that nothing but the orchestration is measured. First one run alone, then many side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from environment import machine, versions, write
from martlet_core.job_bus import CeleryBell
from martlet_core.jobs import JobState
from martlet_core.rpc.server import GrpcServer
from martlet_core.settings import CoreSettings
from martlet_core.stores import open_stores
from martlet_core.testing.servers import start_seaweedfs, start_valkey
from martlet_gateway.clients import Stages
from martlet_gateway.runs.service import RunService
from martlet_gateway.runs.world import make_world
from martlet_gateway.settings import GatewaySettings
from martlet_gateway.testing.stages import StagesDouble

RESULTS = Path(__file__).parent / "results" / "runs.json"
KEYS = ("bench", "bench-secret")
JOB_SECONDS = 0.2
DEADLINE_SECONDS = 300.0


def main() -> None:
    """Run it, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="Seconds between the steps of a run.")
    parser.add_argument("--steps", type=int, default=10, help="steps of a run (default 10)")
    parser.add_argument("--runs", type=int, default=20, help="runs side by side (default 20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="martlet-bench-") as directory:
        figures = _with_servers(Path(directory), options)
    print(f"{'seconds between steps':32}{'p50':>10}{'max':>10}")
    for name, found in figures.items():
        print(f"{name.replace('_', ' '):32}{found['p50']:>10.3f}{found['max']:>10.3f}")
    write(
        RESULTS, {**vars(options), **figures, "machine": machine(), "versions": versions(("celery", "grpcio", "redis"))}
    )


def _with_servers(home: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    for name in ("valkey", "seaweedfs"):
        (home / name).mkdir()
    valkey = start_valkey(home / "valkey")
    seaweedfs = start_seaweedfs(home / "seaweedfs", *KEYS)
    settings = CoreSettings(
        redis_url=valkey.url,
        s3_endpoint=seaweedfs.url,
        s3_access_key=KEYS[0],
        s3_secret_key=KEYS[1],
        cache_dir=home / "cache",
    )  # pyright: ignore[reportCallIssue]
    try:
        return asyncio.run(_measure(settings, options))
    finally:
        seaweedfs.kill()
        valkey.kill()


async def _measure(core: CoreSettings, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    double = StagesDouble()
    double.after_create = lambda job: tasks.append(asyncio.create_task(_carry_out(double, job)))
    tasks: list[asyncio.Task[None]] = []
    server = GrpcServer("127.0.0.1:0", double.services())
    address = f"127.0.0.1:{await server.start()}"
    settings = GatewaySettings(**core.model_dump(), trainer_address=address)  # pyright: ignore[reportCallIssue]
    stores = await asyncio.to_thread(open_stores, settings)
    stages = Stages.connect(settings)
    service = RunService(stores, CeleryBell(settings.redis_url), make_world(stores, stages))
    named = {f"MARTLET_{name.upper()}": str(value) for name, value in core.model_dump().items() if value != ""}
    worker = _start_worker({**named, "MARTLET_TRAINER_ADDRESS": address})
    try:
        await _runs(service, 1, 2)  # the worker is up and warm
        figures = {}
        for name, count in (("one_run", 1), (f"{options.runs}_runs", options.runs)):
            figures[name] = _figures(double, await _runs(service, count, options.steps))
        return figures
    finally:
        worker.terminate()
        worker.wait(30)
        await stages.close()
        await server.stop(0)


def _start_worker(environ: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "martlet_gateway", "work"], env={**os.environ, **environ}, stderr=subprocess.DEVNULL
    )


async def _carry_out(double: StagesDouble, job: Any) -> None:
    await double.move(job, "claim")
    await asyncio.sleep(JOB_SECONDS)
    job.result.merged_model, job.result.model_artifact = f"ft:{job.name}", "artifacts/a"
    await double.move(job, "finish_succeeded")


async def _runs(service: RunService, count: int, steps: int) -> list[str]:
    """Submit runs that are chains of merges and wait for their ends; their ids."""
    chain = {
        f"s{i}": {"kind": "merge", "with": {"adapter": f"${{s{i - 1}.model}}" if i else "ft:x"}} for i in range(steps)
    }
    source = json.dumps({"name": "bench", "steps": chain})
    made = [(await service.create("bench", source=source, inputs={})).run.id for _ in range(count)]
    deadline = time.monotonic() + DEADLINE_SECONDS
    for run in made:
        while (view := await service.get("bench", run)).state is not JobState.SUCCEEDED:
            if view.state.is_final or time.monotonic() > deadline:
                raise SystemExit(f"run {run} is {view.state.value}: {view.leg.error}")
            await asyncio.sleep(0.2)
    return made


def _figures(double: StagesDouble, runs: list[str]) -> dict[str, float]:
    gaps = []
    for run in runs:
        jobs = sorted(
            (job for job in double.jobs.values() if job.labels["martlet-run"] == run),
            key=lambda job: job.create_time.ToNanoseconds(),
        )
        gaps += [
            (after.create_time.ToNanoseconds() - before.end_time.ToNanoseconds()) / 1e9
            for before, after in pairwise(jobs)
        ]
    return {"p50": round(statistics.median(gaps), 4), "max": round(max(gaps), 4), "gaps": len(gaps)}


if __name__ == "__main__":
    main()
