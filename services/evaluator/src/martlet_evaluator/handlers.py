"""How the worker turns evaluation jobs into runs of the suites, and their outputs into results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from martlet_core.artifacts.types import Artifact, PublishedModel
from martlet_core.job_handler import FinishedJob, PreparedJob
from martlet_core.jobs import Job
from martlet_core.model_rules import ARTIFACT_PREFIX
from martlet_core.service_tokens import make_service_token
from martlet_core.stores import Stores
from martlet_inputs.base_models.locate import ModelDirs

from martlet_evaluator.benchmarks import INPUT_PREFIX
from martlet_evaluator.config import EvaluationConfig, parse_evaluation_config
from martlet_evaluator.local_models import resolve_local_model
from martlet_evaluator.naming import EVALUATION, adapter_input, model_input
from martlet_evaluator.settings import EvaluatorSettings
from martlet_evaluator.suite_options import LmEvalOptions, parse_suite_options


class EvaluationHandler:
    """Evaluation jobs."""

    kind = EVALUATION
    entrypoint = "martlet_evaluator.child:run_evaluation"

    def __init__(self, stores: Stores, dirs: ModelDirs, settings: EvaluatorSettings) -> None:
        self._stores = stores
        self._dirs = dirs
        self._settings = settings

    def gpus_needed(self, job: Job) -> int:
        """One if a model is loaded in the job's own process; those that are asked over HTTP have their own."""
        config = parse_evaluation_config(job.spec)
        targets = config.targets if config.asks_targets else ()
        return int(any(target.engine == "transformers" for target in targets))

    def prepare(self, job: Job) -> PreparedJob:
        """See ``JobHandler.prepare``."""
        config = parse_evaluation_config(job.spec)
        inputs = dataset_inputs(config)
        base_models: dict[str, dict[str, str]] = {}
        models: dict[str, dict[str, str]] = {}
        for index, target in enumerate(config.targets if config.asks_targets else ()):
            if target.engine != "transformers":
                continue
            local = resolve_local_model(
                target.model, job.tenant, self._stores, self._dirs.roots, field=f"spec.targets.{index}.model"
            )
            models[target.name] = {"model": model_input(index)}
            if local.adapter:
                models[target.name]["adapter"] = adapter_input(index)
                inputs[adapter_input(index)] = local.adapter
            if local.reference.kind == "artifact":
                inputs[model_input(index)] = local.reference.value
            else:
                base_models[model_input(index)] = self._dirs.describe(local.reference)
        values = {
            "spec": config.model_dump(mode="json", exclude_unset=True),
            "base_models": base_models,
            "models": models,
            **self._deployment(job.tenant),
        }
        return PreparedJob(values, inputs)

    def finish(self, job: Job, values: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> FinishedJob:
        """See ``JobHandler.finish``."""
        return FinishedJob(
            {
                **values,
                "report_artifact": ARTIFACT_PREFIX + artifacts["report"].id,
                "records_artifact": ARTIFACT_PREFIX + artifacts["records"].id,
            }
        )

    def published_model(self, job: Job) -> PublishedModel | None:
        """Evaluations make no model."""
        return None

    def checkpoint_model(self, job: Job, checkpoint: Mapping[str, Any]) -> PublishedModel | None:
        """A checkpoint holds answers."""
        return None

    def _deployment(self, tenant: str) -> dict[str, Any]:
        settings = self._settings
        # The job's process gets a token for its own tenant, and never the one that our services show one another.
        token = make_service_token(settings.internal_token, tenant)
        return {
            "gateway": {"base_url": settings.gateway_url, "api_key": token},
            "allowed_base_urls": list(settings.allowed_urls),
            "benchmarks_dir": str(settings.benchmarks_dir.resolve()) if settings.benchmarks_dir else "",
            "deadline_seconds": settings.request_deadline_seconds,
            "checkpoint_seconds": settings.checkpoint_seconds,
        }


def dataset_inputs(config: EvaluationConfig) -> dict[str, str]:
    """Artifact ids of the data sets that a job names, by their directory under ``inputs/``."""
    inputs = {"dataset": config.dataset.removeprefix(ARTIFACT_PREFIX)} if config.dataset else {}
    for entry in config.suites:
        options = parse_suite_options(entry)
        if isinstance(options, LmEvalOptions):
            for task in options.tasks:
                if task.dataset:
                    inputs[INPUT_PREFIX + task.task] = task.dataset.removeprefix(ARTIFACT_PREFIX)
    return inputs
