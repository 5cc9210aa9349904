"""The evaluator's worker process: a thin supervisor; the questions are asked by a process of each job's own."""

from __future__ import annotations

from collections.abc import Sequence

from martlet_core.job_handler import JobHandler
from martlet_core.stage_worker import work_until_told
from martlet_core.stores import Stores
from martlet_inputs.base_models.locate import ModelDirs

from martlet_evaluator.handlers import EvaluationHandler
from martlet_evaluator.settings import EvaluatorSettings

STAGE = "evaluator"


def build_handlers(stores: Stores, settings: EvaluatorSettings) -> Sequence[JobHandler]:
    """One handler for each kind of job."""
    dirs = ModelDirs(settings.models_dir, settings.cache_dir, settings.allowed_roots)
    return [EvaluationHandler(stores, dirs, settings)]


def work(settings: EvaluatorSettings) -> int:
    """Serve the queue until SIGTERM; returns the exit code."""
    return work_until_told(STAGE, settings, settings.queue, lambda stores: build_handlers(stores, settings))
