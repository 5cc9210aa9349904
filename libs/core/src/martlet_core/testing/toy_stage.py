"""A whole stage for drills and benchmarks: the toy recipe, its handler, and a worker process to kill.

``python -m martlet_core.testing.toy_stage`` runs a worker (``MARTLET_*`` settings); with ``--reconcile`` a reconciler
beside it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from martlet_core.artifacts.types import Artifact, PublishedModel
from martlet_core.gpu_settings import GpuSettings
from martlet_core.job_bus import CeleryBell
from martlet_core.job_gpus import JobGpus
from martlet_core.job_handler import FinishedJob, PreparedJob
from martlet_core.job_service import NewJob
from martlet_core.jobs import Job
from martlet_core.reconciler import Reconciler, ReconcilerOptions
from martlet_core.stores import open_stores
from martlet_core.worker import Worker, WorkerOptions, run_worker

STAGE = QUEUE = "toy"
KIND = "counting"


class ToySettings(GpuSettings):
    """Settings of the worker process."""

    stop_grace_seconds: float = 10.0
    reconcile_seconds: float = 0.5


@dataclass(frozen=True)
class ToyHandler:
    """Runs the toy recipe with the job's spec as its config; ``spec["input"]`` may name an artifact."""

    kind: str = KIND
    entrypoint: str = "martlet_core.testing.toy_recipe:run"

    def gpus_needed(self, job: Job) -> int:
        """As many as the spec's ``gpus`` says."""
        return int(job.spec.get("gpus", 0))

    def prepare(self, job: Job) -> PreparedJob:
        """See ``JobHandler.prepare``."""
        inputs = {"data": job.spec["input"]} if "input" in job.spec else {}
        return PreparedJob(job.spec, inputs)

    def finish(self, job: Job, values: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> FinishedJob:
        """See ``JobHandler.finish``."""
        model = _model(job, f"toy:{job.id}", artifacts["model"].id)
        result = {"value": values["value"], "model": model.name, "model_artifact": model.artifact_id}
        return FinishedJob(result, model)

    def published_model(self, job: Job) -> PublishedModel | None:
        """See ``JobHandler.published_model``."""
        return _model(job, job.result["model"], job.result["model_artifact"])

    def checkpoint_model(self, job: Job, checkpoint: Mapping[str, Any]) -> PublishedModel | None:
        """See ``JobHandler.checkpoint_model``."""
        return _model(job, f"toy:{job.id}:ckpt-step-{checkpoint['step']}", checkpoint["artifact_id"])

    def temporary_model(self, job: Job, number: int, artifact_id: str) -> PublishedModel:
        """See ``PublishesMeanwhile.temporary_model``."""
        return _model(job, f"toy:{job.id}:at-{job.attempt}-{number}", artifact_id)


def toy_job(request_id: str = "", **spec: Any) -> NewJob:
    """A job for ``JobService.create``; the keywords are the toy recipe's config."""
    return NewJob(KIND, QUEUE, {"steps": 20, **spec}, request_id=request_id)


def main(argv: list[str]) -> int:
    """Run a worker until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    settings = ToySettings()  # pyright: ignore[reportCallIssue]  # every field has a default or a variable
    stores = open_stores(settings)
    bell = CeleryBell(settings.redis_url)
    reconciler = None
    if "--reconcile" in argv:
        options = ReconcilerOptions(interval_seconds=settings.reconcile_seconds, unclaimed_seconds=2.0)
        reconciler = Reconciler(STAGE, stores, bell, [ToyHandler()], f"toy-{os.getpid()}", options)
        reconciler.start()
    options = WorkerOptions(
        QUEUE, settings.work_dir, settings.lease_seconds, settings.stop_grace_seconds, idle_poll_seconds=1.0
    )
    worker = Worker(stores, bell, [ToyHandler()], options, JobGpus.open(settings))
    exit_code = run_worker(worker, settings.redis_url, QUEUE)
    if reconciler is not None:
        reconciler.stop()
    return exit_code


def _model(job: Job, name: str, artifact_id: str) -> PublishedModel:
    return PublishedModel(name, "adapter", job.tenant, artifact_id, base_model="toy", lora_rank=8, source_job=job.id)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
