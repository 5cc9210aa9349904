"""The trainer's worker process: a thin supervisor without torch."""

from __future__ import annotations

from collections.abc import Sequence

from martlet_core.job_handler import JobHandler
from martlet_core.stage_worker import work_until_told
from martlet_core.stores import Stores
from martlet_inputs.base_models.locate import ModelDirs

from martlet_trainer.handlers import GatewayAccess, MergeHandler, TrainingHandler
from martlet_trainer.settings import TrainerSettings

STAGE = "trainer"


def build_handlers(stores: Stores, settings: TrainerSettings) -> Sequence[JobHandler]:
    """One handler for each kind of job."""
    dirs = ModelDirs(settings.models_dir, settings.cache_dir, settings.allowed_roots)
    gateway = GatewayAccess(settings.gateway_url, settings.internal_token)
    return [TrainingHandler(stores, dirs, settings.allowed_services, gateway), MergeHandler(stores, dirs)]


def work(settings: TrainerSettings) -> int:
    """Serve the queue until SIGTERM; returns the exit code."""
    return work_until_told(STAGE, settings, settings.queue, lambda stores: build_handlers(stores, settings))
