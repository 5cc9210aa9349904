"""How a worker turns quantization jobs into runs of a method, and their outputs into results. Imports no ML library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from martlet_core.artifacts.types import Artifact, ArtifactStore, PublishedModel
from martlet_core.errors import MartletError
from martlet_core.job_handler import FinishedJob, PreparedJob
from martlet_core.jobs import Job
from martlet_core.model_rules import ARTIFACT_PREFIX
from martlet_core.model_tasks import ModelTask, told_task
from martlet_core.stores import Stores
from martlet_inputs.base_models.locate import ModelDirs

from martlet_quantizer.config import parse_config
from martlet_quantizer.jobs import resolve_model
from martlet_quantizer.naming import QUANTIZATION, quantized_name
from martlet_quantizer.serving_check import ServingCheck, not_tried

_TEMPLATE, _TOKENIZER = "chat_template.jinja", "tokenizer_config.json"


class QuantizationHandler:
    """Quantization jobs.

    Args:
        stores: where everything is kept.
        dirs: where base models that are no artifacts lie.
        engine_pythons: interpreters of further families' environments on this machine, by family.
        serving: asks a replica for the finished model.
    """

    kind = QUANTIZATION
    entrypoint = "martlet_quantizer.child:run_quantization"

    def __init__(
        self, stores: Stores, dirs: ModelDirs, engine_pythons: Mapping[str, str], serving: ServingCheck | None = None
    ) -> None:
        self._stores = stores
        self._dirs = dirs
        self._engine_pythons = engine_pythons
        self._serving = serving or ServingCheck()

    def gpus_needed(self, job: Job) -> int:
        """One: every method is measured on a GPU where there is one, and most compute on it."""
        return 1

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
            "task": self._task(reference.value) if reference.kind == "artifact" else None,
        }
        return PreparedJob(values, inputs)

    def finish(self, job: Job, values: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> FinishedJob:
        """See ``JobHandler.finish``."""
        result = {**values, **{f"{name}_artifact": ARTIFACT_PREFIX + stored.id for name, stored in artifacts.items()}}
        model = self._model(job, artifacts["model"])
        if model is not None:
            result["quantized_model"] = model.name
        return FinishedJob(result, model)

    def try_out(self, job: Job, finished: FinishedJob, give_up: Callable[[], bool]) -> FinishedJob:
        """See ``TriesItsModel.try_out``: one more row of ``engines``."""
        row = self._served(job, finished.model, give_up)
        return replace(finished, result={**finished.result, "engines": [*finished.result.get("engines", ()), row]})

    def tried_name(self, job: Job) -> str | None:
        """See ``TriesItsModel.tried_name``."""
        return quantized_name(job, parse_config(job.spec))

    def _served(self, job: Job, model: PublishedModel | None, give_up: Callable[[], bool]) -> dict[str, Any]:
        if model is None:
            return not_tried("no engine of ours serves this format")
        if not parse_config(job.spec).check_serving:
            return not_tried("the job said no (check_serving)")
        if why := self._serving.why_not():
            return not_tried(why)
        task = told_task(model.metadata)
        if task not in (None, ModelTask.CAUSAL_LM):
            return not_tried(f"it is for {task.value.replace('_', ' ')}, and those that write text alone are asked")
        try:
            chat = has_chat_template(self._stores.artifacts, model.artifact_id)
        except MartletError as error:
            return not_tried(f"its files could not be looked at: {error.message}")
        return self._serving.run(model.name, model.tenant, chat=chat, give_up=give_up)

    def published_model(self, job: Job) -> PublishedModel | None:
        """See ``JobHandler.published_model``."""
        artifact_id = str(job.result["model_artifact"]).removeprefix(ARTIFACT_PREFIX)
        return self._model(job, self._stores.artifacts.get(artifact_id))

    def checkpoint_model(self, job: Job, checkpoint: Mapping[str, Any]) -> PublishedModel | None:
        """Quantizations have no checkpoints."""
        return None

    def _task(self, artifact_id: str) -> str | None:
        """What the model to quantize was made for, as far as its artifact says so."""
        task = told_task(self._stores.artifacts.get(artifact_id).metadata)
        return task.value if task else None

    def _model(self, job: Job, artifact: Artifact) -> PublishedModel | None:
        name = quantized_name(job, parse_config(job.spec))
        task = {"task": artifact.metadata["task"]} if "task" in artifact.metadata else {}
        return (
            PublishedModel(name, "whole", job.tenant, artifact.id, source_job=job.id, metadata=task) if name else None
        )


def has_chat_template(artifacts: ArtifactStore, artifact_id: str) -> bool:
    """Whether a model's tokenizer knows how to write a conversation."""
    artifact = artifacts.get(artifact_id)
    paths = {file.path for file in artifact.files}
    if _TEMPLATE in paths:
        return True
    return _TOKENIZER in paths and "chat_template" in json.loads(b"".join(artifacts.open_file(artifact, _TOKENIZER)))
