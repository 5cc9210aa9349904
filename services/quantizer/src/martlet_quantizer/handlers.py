"""How a worker turns quantization jobs into runs of a method, and their outputs into results. Imports no ML library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from martlet_core.artifacts.types import Artifact, PublishedModel
from martlet_core.job_handler import FinishedJob, PreparedJob
from martlet_core.jobs import Job
from martlet_core.model_rules import ARTIFACT_PREFIX
from martlet_core.stores import Stores
from martlet_inputs.base_models.locate import ModelDirs

from martlet_quantizer.config import parse_config
from martlet_quantizer.jobs import resolve_model
from martlet_quantizer.naming import QUANTIZATION, quantized_name


class QuantizationHandler:
    """Quantization jobs.

    Args:
        stores: where everything is kept.
        dirs: where base models that are no artifacts lie.
        engine_pythons: interpreters of further families' environments on this machine, by family.
    """

    kind = QUANTIZATION
    entrypoint = "martlet_quantizer.child:run_quantization"

    def __init__(self, stores: Stores, dirs: ModelDirs, engine_pythons: Mapping[str, str]) -> None:
        self._stores = stores
        self._dirs = dirs
        self._engine_pythons = engine_pythons

    def prepare(self, job: Job) -> PreparedJob:
        """See ``JobHandler.prepare``."""
        config = parse_config(job.spec)
        reference = resolve_model(
            config.model, job.tenant, self._stores.artifacts, self._stores.models, self._dirs.roots
        )
        inputs = {}
        if reference.kind == "artifact":
            inputs["base_model"] = reference.value
        for name, dataset in (("calibration", config.calibration.dataset), ("evaluation", config.evaluation_dataset)):
            if dataset:
                inputs[name] = dataset.removeprefix(ARTIFACT_PREFIX)
        values = {
            "spec": config.model_dump(mode="json", exclude_unset=True),
            "base_model": self._dirs.describe(reference),
            "engine_pythons": dict(self._engine_pythons),
        }
        return PreparedJob(values, inputs)

    def finish(self, job: Job, values: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> FinishedJob:
        """See ``JobHandler.finish``."""
        result = {**values, **{f"{name}_artifact": ARTIFACT_PREFIX + stored.id for name, stored in artifacts.items()}}
        model = self._model(job, artifacts["model"].id)
        if model is not None:
            result["quantized_model"] = model.name
        return FinishedJob(result, model)

    def published_model(self, job: Job) -> PublishedModel | None:
        """See ``JobHandler.published_model``."""
        return self._model(job, str(job.result["model_artifact"]).removeprefix(ARTIFACT_PREFIX))

    def checkpoint_model(self, job: Job, checkpoint: Mapping[str, Any]) -> PublishedModel | None:
        """Quantizations have no checkpoints."""
        return None

    def _model(self, job: Job, artifact_id: str) -> PublishedModel | None:
        name = quantized_name(job, parse_config(job.spec))
        return PublishedModel(name, "whole", job.tenant, artifact_id, source_job=job.id) if name else None
