"""What is checked before a job may cost anyone a GPU second: names resolve, data sets exist, belong to the caller and
can be read.

Reading a data set may take long, so checks have threads of their own: other calls go on meanwhile. Imports no ML library.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core.artifacts.types import ArtifactStore, ModelRegistry, PublishedModel
from martlet_core.errors import InvalidArgument
from martlet_core.model_rules import ARTIFACT_PREFIX, BOTTLENECKS, PUBLISHED_PREFIX
from martlet_inputs.base_models.catalog import Reference
from martlet_inputs.base_models.model_files import file_at_hand, files_at_hand
from martlet_inputs.base_models.resolve import get_artifact, get_model, resolve_adapter, resolve_base_model
from martlet_inputs.base_models.vocabulary import TOKENIZER, read_vocabulary, require_same
from martlet_inputs.datasets import DatasetChecker
from martlet_inputs.rows.report import DataReport, joined

from martlet_trainer.adapter_shape import SHAPE_FIELDS, as_bottlenecks, require_mergeable, require_shape
from martlet_trainer.base_tasks import check_adapter_task, check_base_task
from martlet_trainer.config import (
    MergeConfig,
    TrainingConfig,
    parse_recipe_options,
    require_allowed,
    reward_services,
    row_kind,
)
from martlet_trainer.labels import label_names
from martlet_trainer.quantized_bases import check_mergeable, check_readable, check_trainable
from martlet_trainer.recipes.options import DistillOptions
from martlet_trainer.row_lengths import RowLengths
from martlet_trainer.trackers import check_offered

_CHECKS_AT_A_TIME = 4
_TRAINING = "spec.training_dataset"
TEACHER_FIELD = "spec.recipe_options.teacher_model"


class Submissions:
    """Checks what a caller asked for.

    Args:
        artifacts: where data sets and models are.
        models: published model names.
        model_roots: directories that ``file://`` base models may lie in.
        models_dir: prepared base models, one directory a name.
        scratch_dir: where data sets are laid out to be read.
        max_json_bytes: largest .json data set, which is read as a whole.
        allowed_services: reward services that the operator allowed.
        trackers: kinds of trackers that the deployment offers.
    """

    def __init__(
        self,
        artifacts: ArtifactStore,
        models: ModelRegistry,
        *,
        model_roots: tuple[Path, ...],
        models_dir: Path,
        scratch_dir: Path,
        max_json_bytes: int = 256 * 1024 * 1024,
        allowed_services: Sequence[str] = (),
        trackers: Sequence[str] = (),
    ) -> None:
        self._artifacts = artifacts
        self._models = models
        self._model_roots = model_roots
        self._allowed_services = allowed_services
        self._models_dir = models_dir
        self._trackers = trackers
        self._datasets = DatasetChecker(artifacts, scratch_dir, max_json_bytes)
        self._lengths = RowLengths(artifacts, models_dir, scratch_dir)
        self._threads = ThreadPoolExecutor(_CHECKS_AT_A_TIME, thread_name_prefix="submission")

    async def check_training(self, tenant: str, config: TrainingConfig) -> None:
        """Refuse a training that can't work.

        Raises:
            NotFound: the base model or a data set doesn't exist, with close matches where there are any.
            InvalidArgument: a data set can't be trained on (field, line, remedy), rows are longer than the model takes, a
                reference is of the wrong kind, or a tracker isn't offered.
            FailedPrecondition: the base model is quantized in a way that can't be trained on.
            PermissionDenied: a local path outside of what the operator allowed.
        """
        await self._in_thread(lambda: self._check_training(tenant, config))

    async def check_merge(self, tenant: str, config: MergeConfig) -> None:
        """Refuse a merge that can't work; see ``check_training``."""
        await self._in_thread(lambda: self._check_merge(tenant, config))

    def _check_training(self, tenant: str, config: TrainingConfig) -> None:
        check_offered(config.trackers, self._trackers)
        base = resolve_training_base(config, tenant, self._artifacts, self._models, self._model_roots)
        if base.adapter is not None:
            shape = adapter_shape(base.adapter, tenant, self._artifacts)
            if base.adapter.metadata.get("tuner") == BOTTLENECKS:
                config = as_bottlenecks(config, shape.get("options", {}))
            else:
                require_shape(config.tuner, config.base_model, shape)
            check_adapter_task(config, base.adapter.metadata.get("task"))
        files = files_at_hand(base.reference, self._artifacts, self._models_dir)
        if files is not None:
            check_base_task(config, files)
            check_trainable(config.tuner, config.base_model, files, underneath=base.underneath)
        self._check_teacher(tenant, config, base)
        require_allowed(reward_services(config), self._allowed_services)
        datasets, kind = datasets_at_hand(config), row_kind(config)
        reports = {
            field: self._datasets.check(name, tenant, config.data.on_bad_rows, field, kind)
            for field, name in datasets.items()
        }
        self._check_labels(config, reports)
        longest = max((report.longest_row_bytes for report in reports.values()), default=0)
        self._lengths.check(config, base.reference, datasets, longest)

    def _check_labels(self, config: TrainingConfig, reports: Mapping[str, DataReport]) -> None:
        training = [(field, report) for field, report in reports.items() if field.startswith(_TRAINING)]
        if len(training) == len(config.sources):  # else some are a hub's, whose rows a worker judges
            others = {field: report for field, report in reports.items() if not field.startswith(_TRAINING)}
            label_names(config, {_TRAINING: joined(training), **others})

    def _check_teacher(self, tenant: str, config: TrainingConfig, student: TrainingBase) -> None:
        teacher = resolve_teacher(config, tenant, self._artifacts, self._models, self._model_roots)
        if teacher is None:
            return
        files = files_at_hand(teacher.reference, self._artifacts, self._models_dir, TEACHER_FIELD)
        if files is not None:
            check_readable(TEACHER_FIELD, files)
        found = [
            file_at_hand(side.reference, TOKENIZER, self._artifacts, self._models_dir) for side in (student, teacher)
        ]
        ours, theirs = (read_vocabulary(text) if text else None for text in found)
        if ours is not None and theirs is not None:  # else the worker judges, which loads both
            require_same(ours, theirs, TEACHER_FIELD)

    def _check_merge(self, tenant: str, config: MergeConfig) -> None:
        adapter = resolve_adapter(config.adapter, tenant, self._artifacts, self._models)
        artifact = get_artifact(self._artifacts, ARTIFACT_PREFIX + adapter.artifact_id, tenant, "spec.adapter")
        require_mergeable(str(artifact.metadata.get("tuner", "")))
        reference = resolve_base_model(
            adapter.base_model, tenant, self._artifacts, self._models, self._model_roots, field="spec.adapter"
        )
        files = files_at_hand(reference, self._artifacts, self._models_dir, "spec.adapter")
        if files is not None:
            check_mergeable(adapter.base_model, files)

    async def _in_thread(self, check: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, check)


def datasets_at_hand(config: TrainingConfig) -> dict[str, str]:
    """The data sets that are artifacts, by the request's field that names them; those of hubs a worker fetches and judges."""
    names = {
        "spec.training_dataset": config.training_dataset,
        "spec.validation_dataset": config.validation_dataset or "",
    }
    for index, sample in enumerate(config.training_datasets[1:], start=1):
        names[f"spec.training_datasets.{index}.dataset"] = sample.dataset
    return {field: name for field, name in names.items() if name.startswith(ARTIFACT_PREFIX)}


@dataclass(frozen=True)
class TrainingBase:
    """What a training starts from.

    Attributes:
        reference: the whole model.
        adapter: the adapter on it that the training goes on with; None for a new one.
    """

    reference: Reference
    adapter: PublishedModel | None = None

    @property
    def underneath(self) -> str:
        """Name of the whole model under an adapter; empty where the base is a whole model itself."""
        return self.adapter.base_model if self.adapter is not None else ""


def resolve_training_base(
    config: TrainingConfig,
    tenant: str,
    artifacts: ArtifactStore,
    models: ModelRegistry,
    model_roots: tuple[Path, ...],
) -> TrainingBase:
    """What a training's ``base_model`` stands for now: a whole model, or an adapter and the model underneath it.

    Raises:
        As ``resolve_base_model``, and InvalidArgument if whole weights are to be trained from an adapter.
    """
    base = _resolve(config.base_model, tenant, artifacts, models, model_roots, "spec.base_model")
    kind = config.tuner.kind
    if base.adapter is not None and config.tuner.facts.whole_model:
        text = (
            f"can't be {kind} on {config.base_model}, which is an adapter; merge it first, or train an adapter (lora)"
        )
        raise InvalidArgument.field("spec.tuner.kind", text)
    return base


def resolve_teacher(
    config: TrainingConfig,
    tenant: str,
    artifacts: ArtifactStore,
    models: ModelRegistry,
    model_roots: tuple[Path, ...],
) -> TrainingBase | None:
    """The model that a training learns from, as ``resolve_training_base`` finds the one that learns; None where there is none."""
    options = parse_recipe_options(config)
    if not isinstance(options, DistillOptions):
        return None
    return _resolve(options.teacher_model, tenant, artifacts, models, model_roots, TEACHER_FIELD)


def _resolve(
    name: str,
    tenant: str,
    artifacts: ArtifactStore,
    models: ModelRegistry,
    model_roots: tuple[Path, ...],
    field: str,
) -> TrainingBase:
    if not _may_be_adapter(name, tenant, artifacts, models, field):
        return TrainingBase(resolve_base_model(name, tenant, artifacts, models, model_roots, field=field))
    adapter = resolve_adapter(name, tenant, artifacts, models, field=field)
    reference = resolve_base_model(adapter.base_model, tenant, artifacts, models, model_roots, field=field)
    return TrainingBase(reference, adapter)


def _may_be_adapter(name: str, tenant: str, artifacts: ArtifactStore, models: ModelRegistry, field: str) -> bool:
    if name.startswith(PUBLISHED_PREFIX):
        return get_model(models, name, tenant, field).kind == "adapter"
    if name.startswith(ARTIFACT_PREFIX):
        return get_artifact(artifacts, name, tenant, field).kind in ("adapter", "checkpoint")
    return False


def adapter_shape(adapter: PublishedModel, tenant: str, artifacts: ArtifactStore) -> dict[str, Any]:
    """What is known of an adapter's shape without its files, by the names of ``SHAPE_FIELDS``; of bottlenecks their ``options``."""
    metadata = get_artifact(artifacts, ARTIFACT_PREFIX + adapter.artifact_id, tenant, "spec.base_model").metadata
    known = {field: metadata[field] for field in (*SHAPE_FIELDS, "options") if field in metadata}
    return {**known, "lora_rank": adapter.lora_rank} if adapter.lora_rank else known
