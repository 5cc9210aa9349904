"""How the worker turns training and merge jobs into recipe runs, and their outputs into results. Imports no ML
library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core.artifacts.types import Artifact, PublishedModel
from martlet_core.job_handler import FinishedJob, PreparedJob
from martlet_core.jobs import Job
from martlet_core.stores import Stores

from martlet_trainer.base_models.catalog import ARTIFACT_PREFIX, Reference
from martlet_trainer.config import TrainingConfig, parse_merge_config, parse_training_config
from martlet_trainer.jobs import resolve_adapter, resolve_base_model
from martlet_trainer.naming import MERGE, TRAINING, checkpoint_model_name, fine_tuned_name


@dataclass(frozen=True)
class ModelDirs:
    """Where base models that are no artifacts lie on this machine.

    Attributes:
        models_dir: prepared models of the catalogue, one directory a name.
        cache_dir: cache of models from the hub.
        roots: directories that ``file://`` paths may lie in.
    """

    models_dir: Path
    cache_dir: Path
    roots: tuple[Path, ...]

    def describe(self, reference: Reference) -> dict[str, str]:
        """What the child process needs to find the model."""
        return {
            "kind": reference.kind,
            "value": reference.value,
            "models_dir": str(self.models_dir),
            "cache_dir": str(self.cache_dir),
        }


class TrainingHandler:
    """Training jobs."""

    kind = TRAINING
    entrypoint = "martlet_trainer.child:run_training"

    def __init__(self, stores: Stores, dirs: ModelDirs) -> None:
        self._stores = stores
        self._dirs = dirs

    def prepare(self, job: Job) -> PreparedJob:
        """See ``JobHandler.prepare``."""
        config = parse_training_config(job.spec)
        reference = resolve_base_model(
            config.base_model, job.tenant, self._stores.artifacts, self._stores.models, self._dirs.roots
        )
        inputs = {"training_dataset": config.training_dataset.removeprefix(ARTIFACT_PREFIX)}
        if config.validation_dataset:
            inputs["validation_dataset"] = config.validation_dataset.removeprefix(ARTIFACT_PREFIX)
        if reference.kind == "artifact":
            inputs["base_model"] = reference.value
        values = {"spec": config.model_dump(mode="json"), "base_model": self._dirs.describe(reference)}
        return PreparedJob(values, inputs)

    def finish(self, job: Job, values: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> FinishedJob:
        """See ``JobHandler.finish``."""
        result = {
            **values,
            "fine_tuned_model": _trained_name(job),
            "model_artifact": ARTIFACT_PREFIX + artifacts["model"].id,
        }
        if "metrics" in artifacts:
            result["metrics_artifact"] = ARTIFACT_PREFIX + artifacts["metrics"].id
        return FinishedJob(result, _trained_model(job, result["fine_tuned_model"], artifacts["model"].id))

    def published_model(self, job: Job) -> PublishedModel | None:
        """See ``JobHandler.published_model``."""
        artifact_id = str(job.result["model_artifact"]).removeprefix(ARTIFACT_PREFIX)
        return _trained_model(job, str(job.result["fine_tuned_model"]), artifact_id)

    def checkpoint_model(self, job: Job, checkpoint: Mapping[str, Any]) -> PublishedModel | None:
        """See ``JobHandler.checkpoint_model``."""
        name = checkpoint_model_name(job, checkpoint["step"])
        return _trained_model(job, name, checkpoint["artifact_id"]) if name else None


class MergeHandler:
    """Merge jobs."""

    kind = MERGE
    entrypoint = "martlet_trainer.child:run_merge"

    def __init__(self, stores: Stores, dirs: ModelDirs) -> None:
        self._stores = stores
        self._dirs = dirs

    def prepare(self, job: Job) -> PreparedJob:
        """See ``JobHandler.prepare``."""
        config = parse_merge_config(job.spec)
        artifacts, models = self._stores.artifacts, self._stores.models
        adapter = resolve_adapter(config.adapter, job.tenant, artifacts, models)
        reference = resolve_base_model(
            adapter.base_model, job.tenant, artifacts, models, self._dirs.roots, field="spec.adapter"
        )
        inputs = {"adapter": adapter.artifact_id}
        if reference.kind == "artifact":
            inputs["base_model"] = reference.value
        values = {
            "spec": config.model_dump(mode="json"),
            "base_model": self._dirs.describe(reference),
            "base_model_name": adapter.base_model,
        }
        return PreparedJob(values, inputs)

    def finish(self, job: Job, values: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> FinishedJob:
        """See ``JobHandler.finish``."""
        artifact = artifacts["model"]
        config = parse_merge_config(job.spec)
        name = fine_tuned_name(str(artifact.metadata["base_model"]), job.tenant, config.suffix, job.id)
        result = {**values, "merged_model": name, "model_artifact": ARTIFACT_PREFIX + artifact.id}
        return FinishedJob(result, _whole_model(job, name, artifact.id))

    def published_model(self, job: Job) -> PublishedModel | None:
        """See ``JobHandler.published_model``."""
        artifact_id = str(job.result["model_artifact"]).removeprefix(ARTIFACT_PREFIX)
        return _whole_model(job, str(job.result["merged_model"]), artifact_id)

    def checkpoint_model(self, job: Job, checkpoint: Mapping[str, Any]) -> PublishedModel | None:
        """Merges have no checkpoints."""
        return None


def _trained_name(job: Job) -> str:
    config = parse_training_config(job.spec)
    return fine_tuned_name(config.base_model, job.tenant, config.suffix, job.id)


def _trained_model(job: Job, name: str, artifact_id: str) -> PublishedModel:
    config = parse_training_config(job.spec)
    if config.tuner.kind == "full":
        return _whole_model(job, name, artifact_id)
    return PublishedModel(
        name,
        "adapter",
        job.tenant,
        artifact_id,
        base_model=config.base_model,
        lora_rank=config.tuner.lora_rank,
        source_job=job.id,
        metadata=_adapter_facts(config),
    )


def _adapter_facts(config: TrainingConfig) -> dict[str, Any]:
    """What an engine must know before it tries to load the adapter."""
    return {"use_dora": config.tuner.use_dora, "modules_to_save": list(config.tuner.modules_to_save)}


def _whole_model(job: Job, name: str, artifact_id: str) -> PublishedModel:
    return PublishedModel(name, "whole", job.tenant, artifact_id, source_job=job.id)
