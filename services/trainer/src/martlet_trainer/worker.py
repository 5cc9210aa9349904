"""The trainer's worker process: a thin supervisor without torch."""

from __future__ import annotations

from martlet_core.job_bus import CeleryBell
from martlet_core.stores import Stores, open_stores
from martlet_core.worker import Worker, WorkerOptions, run_worker

from martlet_trainer.handlers import MergeHandler, ModelDirs, TrainingHandler
from martlet_trainer.settings import TrainerSettings


def build_handlers(stores: Stores, settings: TrainerSettings) -> list[TrainingHandler | MergeHandler]:
    """One handler for each kind of job."""
    dirs = ModelDirs(settings.models_dir, settings.cache_dir, settings.allowed_roots)
    return [TrainingHandler(stores, dirs), MergeHandler(stores, dirs)]


def work(settings: TrainerSettings) -> int:
    """Serve the queue until SIGTERM; returns the exit code."""
    stores = open_stores(settings)
    options = WorkerOptions(
        queue=settings.queue,
        work_dir=settings.work_dir / "trainer",
        lease_seconds=settings.lease_seconds,
        stop_grace_seconds=settings.stop_grace_seconds,
        preempt_after_seconds=settings.preempt_after_seconds,
    )
    worker = Worker(stores, CeleryBell(settings.redis_url), build_handlers(stores, settings), options)
    return run_worker(worker, settings.redis_url, settings.queue)
