"""A job stage's ``work`` process: the supervisor of its recipes, as the stage's settings say. Imports no ML library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from martlet_core.alive import touching
from martlet_core.job_bus import CeleryBell
from martlet_core.job_gpus import JobGpus
from martlet_core.job_handler import JobHandler
from martlet_core.stage_settings import StageSettings
from martlet_core.stores import Stores, open_stores
from martlet_core.worker import Worker, WorkerOptions, run_worker


def work_until_told(
    stage: str, settings: StageSettings, queue: str, handlers: Callable[[Stores], Sequence[JobHandler]]
) -> int:
    """Serve a queue until SIGTERM; returns the exit code."""
    stores = open_stores(settings)
    options = WorkerOptions(
        queue=queue,
        work_dir=settings.work_dir / stage,
        lease_seconds=settings.lease_seconds,
        stop_grace_seconds=settings.stop_grace_seconds,
        preempt_after_seconds=settings.preempt_after_seconds,
    )
    bell = CeleryBell(settings.redis_url)
    worker = Worker(stores, bell, handlers(stores), options, JobGpus.open(settings))
    with touching(settings.alive_file, lambda: worker.polls):
        return run_worker(worker, settings.redis_url, queue)
