"""How the worker turns training and merge jobs into recipe runs, and their outputs into results. Imports no ML
library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from martlet_core.artifacts.types import Artifact, PublishedModel
from martlet_core.errors import FailedPrecondition, NotFound
from martlet_core.job_handler import FinishedJob, PreparedJob
from martlet_core.jobs import Job
from martlet_core.model_rules import ARTIFACT_PREFIX, published_name
from martlet_core.service_tokens import make_service_token
from martlet_core.stores import Stores
from martlet_inputs.base_models.locate import ModelDirs
from martlet_inputs.base_models.resolve import resolve_adapter, resolve_base_model

from martlet_trainer.config import (
    TrainingConfig,
    answers_options,
    judging_graders,
    parse_merge_config,
    parse_training_config,
)
from martlet_trainer.jobs import adapter_shape, resolve_teacher, resolve_training_base
from martlet_trainer.naming import MERGE, TRAINING, checkpoint_model_name
from martlet_trainer.recipes import RECIPES


@dataclass(frozen=True)
class GatewayAccess:
    """How trainings ask models.

    Attributes:
        url: the gateway's REST address, ending in ``/v1``; empty: they can't.
        internal_token: what their tokens are made with; empty: they can't either.
    """

    url: str = ""
    internal_token: str = ""

    def for_tenant(self, tenant: str, what: str) -> dict[str, str]:
        """What a job's process is told: the address, and a token for its tenant alone (ADR 0011).

        Args:
            tenant: the job's.
            what: what in the request needs it.

        Raises:
            FailedPrecondition: this worker knows no gateway, or has nothing to make a token with.
        """
        token = make_service_token(self.internal_token, tenant)
        missing = "MARTLET_GATEWAY_URL" if not self.url else "MARTLET_INTERNAL_TOKEN" if not token else ""
        if missing:
            raise FailedPrecondition(
                f"{what} asks models through the gateway, and this worker can't: {missing} isn't set for it. An operator sets it, or the"
                " training does without.",
                reason="WORKER_KNOWS_NO_GATEWAY",
            )
        return {"base_url": self.url, "token": token}


class TrainingHandler:
    """Training jobs."""

    kind = TRAINING
    entrypoint = "martlet_trainer.child:run_training"

    def __init__(
        self,
        stores: Stores,
        dirs: ModelDirs,
        allowed_services: Sequence[str] = (),
        gateway: GatewayAccess = GatewayAccess(),  # frozen
    ) -> None:
        self._stores = stores
        self._dirs = dirs
        self._allowed_services = allowed_services
        self._gateway = gateway

    def gpus_needed(self, job: Job) -> int:
        """See ``JobHandler.gpus_needed``."""
        resources = parse_training_config(job.spec).resources
        return 0 if resources.device == "cpu" else resources.device_count

    def prepare(self, job: Job) -> PreparedJob:
        """See ``JobHandler.prepare``."""
        config = parse_training_config(job.spec)
        base = resolve_training_base(config, job.tenant, self._stores.artifacts, self._stores.models, self._dirs.roots)
        datasets = {name: source.dataset for name, source in config.sources.items()}
        if config.validation_dataset:
            datasets["validation_dataset"] = config.validation_dataset
        of_hubs = {name: dataset for name, dataset in datasets.items() if not dataset.startswith(ARTIFACT_PREFIX)}
        inputs = {
            name: dataset.removeprefix(ARTIFACT_PREFIX) for name, dataset in datasets.items() if name not in of_hubs
        }
        if base.adapter is not None:
            inputs["adapter"] = base.adapter.artifact_id
        if base.reference.kind == "artifact":
            inputs["base_model"] = base.reference.value
        teacher = resolve_teacher(config, job.tenant, self._stores.artifacts, self._stores.models, self._dirs.roots)
        if teacher is not None:
            if teacher.adapter is not None:
                inputs["teacher_adapter"] = teacher.adapter.artifact_id
            if teacher.reference.kind == "artifact":
                inputs["teacher_model"] = teacher.reference.value
        # Only what was set: a number that the user chose must be told from a default where an adapter has its own. Trackers
        # are no business of the training's process.
        spec = {**config.model_dump(mode="json", exclude_unset=True, exclude={"trackers"}), "recipe": config.recipe}
        if base.adapter is not None:
            spec["adapter_base_model"] = base.adapter.base_model
        models = {"base_model": base} | ({"teacher_model": teacher} if teacher is not None else {})
        values = {
            "spec": spec,
            "allowed_reward_services": list(self._allowed_services),
            "gateway": self._gateway_of(job, config),
            "hub_datasets": of_hubs,
            "token_cache": str(self._dirs.cache_dir / "tokens"),
            **{name: self._dirs.describe(model.reference) for name, model in models.items()},
        }
        return PreparedJob(values, inputs)

    def _gateway_of(self, job: Job, config: TrainingConfig) -> dict[str, str] | None:
        """What the job's process is told of the gateway; None where it asks for nothing there."""
        if answers_options(config).via == "inference":
            return self._gateway.for_tenant(job.tenant, "recipe_options.rollouts.via inference")
        if graders := judging_graders(config):
            return self._gateway.for_tenant(job.tenant, f"The grader {graders[0]['name']}")
        return None

    def finish(self, job: Job, values: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> FinishedJob:
        """See ``JobHandler.finish``."""
        result = {
            **values,
            "fine_tuned_model": self._model(job, artifacts["model"]).name,
            "model_artifact": ARTIFACT_PREFIX + artifacts["model"].id,
        }
        if "metrics" in artifacts:
            result["metrics_artifact"] = ARTIFACT_PREFIX + artifacts["metrics"].id
        return FinishedJob(result, self._model(job, artifacts["model"]))

    def published_model(self, job: Job) -> PublishedModel | None:
        """See ``JobHandler.published_model``."""
        artifact_id = str(job.result["model_artifact"]).removeprefix(ARTIFACT_PREFIX)
        return self._model(job, self._stores.artifacts.get(artifact_id))

    def checkpoint_model(self, job: Job, checkpoint: Mapping[str, Any]) -> PublishedModel | None:
        """See ``JobHandler.checkpoint_model``."""
        name = checkpoint_model_name(job, checkpoint["step"])
        if name is None:
            return None
        facts = self._adapter_facts(job)
        return _adapter_model(job, name, checkpoint["artifact_id"], facts) if facts is not None else None

    def temporary_model(self, job: Job, number: int, artifact_id: str) -> PublishedModel:
        """See ``PublishesMeanwhile.temporary_model``."""
        facts = self._adapter_facts(job)
        if facts is None:
            raise FailedPrecondition("The base model was deleted while the training ran.", reason="INPUT_GONE")
        config = parse_training_config(job.spec)
        name = published_name(config.base_model, job.tenant, config.suffix, job.id)
        return _adapter_model(job, f"{name}:rollouts-{job.attempt}-{number}", artifact_id, facts)

    def _adapter_facts(self, job: Job) -> Mapping[str, Any] | None:
        """What is known of the adapter that a job trains; None where what it was trained from is gone: nothing can serve it."""
        config = parse_training_config(job.spec)
        facts: Mapping[str, Any] = {
            "base_model": config.base_model,
            **config.tuner.model_dump(mode="json"),
            "lora_rank": config.tuner.written_rank,
            "tuner": "lora" if config.tuner.facts.low_rank else config.tuner.kind,
            **({} if RECIPES[config.recipe].task == "causal_lm" else {"task": config.recipe}),
        }
        try:
            base = resolve_training_base(
                config, job.tenant, self._stores.artifacts, self._stores.models, self._dirs.roots
            )
        except NotFound:
            return None
        if base.adapter is not None:
            facts = {
                "base_model": base.adapter.base_model,
                "lora_rank": base.adapter.lora_rank,
                **base.adapter.metadata,
                **adapter_shape(base.adapter, job.tenant, self._stores.artifacts),
            }
        return facts

    def _model(self, job: Job, artifact: Artifact) -> PublishedModel:
        config = parse_training_config(job.spec)
        name = published_name(config.base_model, job.tenant, config.suffix, job.id)
        if artifact.kind == "adapter":
            return _adapter_model(job, name, artifact.id, artifact.metadata)
        return _whole_model(job, name, artifact)


class MergeHandler:
    """Merge jobs."""

    kind = MERGE
    entrypoint = "martlet_trainer.child:run_merge"

    def __init__(self, stores: Stores, dirs: ModelDirs) -> None:
        self._stores = stores
        self._dirs = dirs

    def gpus_needed(self, job: Job) -> int:
        """None: merges compute on the CPU."""
        return 0

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
            "task": adapter.metadata.get("task"),
        }
        return PreparedJob(values, inputs)

    def finish(self, job: Job, values: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> FinishedJob:
        """See ``JobHandler.finish``."""
        artifact = artifacts["model"]
        config = parse_merge_config(job.spec)
        name = published_name(str(artifact.metadata.get("base_model", "merged")), job.tenant, config.suffix, job.id)
        result = {**values, "merged_model": name, "model_artifact": ARTIFACT_PREFIX + artifact.id}
        return FinishedJob(result, _whole_model(job, name, artifact))

    def published_model(self, job: Job) -> PublishedModel | None:
        """See ``JobHandler.published_model``."""
        artifact_id = str(job.result["model_artifact"]).removeprefix(ARTIFACT_PREFIX)
        return _whole_model(job, str(job.result["merged_model"]), self._stores.artifacts.get(artifact_id))

    def checkpoint_model(self, job: Job, checkpoint: Mapping[str, Any]) -> PublishedModel | None:
        """Merges have no checkpoints."""
        return None


def _adapter_model(job: Job, name: str, artifact_id: str, facts: Mapping[str, Any]) -> PublishedModel:
    return PublishedModel(
        name,
        "adapter",
        job.tenant,
        artifact_id,
        base_model=str(facts["base_model"]),
        lora_rank=int(facts.get("lora_rank", 0)),
        source_job=job.id,
        # What an engine must know before it tries to load the adapter.
        metadata={key: facts[key] for key in ("use_dora", "modules_to_save", "task") if facts.get(key)}
        | ({"tuner": facts["tuner"]} if facts.get("tuner", "lora") != "lora" else {}),
    )


def _whole_model(job: Job, name: str, artifact: Artifact) -> PublishedModel:
    task = {"task": artifact.metadata["task"]} if "task" in artifact.metadata else {}
    return PublishedModel(name, "whole", job.tenant, artifact.id, source_job=job.id, metadata=task)
