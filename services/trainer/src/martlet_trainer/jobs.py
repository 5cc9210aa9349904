"""What is checked before a job may cost anyone a GPU second: names resolve, data sets exist, belong to the caller and
can be read.

Reading a data set may take long, so checks have threads of their own: other calls go on meanwhile. Imports no ML library.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core.artifacts.types import WHOLE_MODEL_KINDS, Artifact, ArtifactStore, ModelRegistry, PublishedModel
from martlet_core.errors import InvalidArgument, NotFound
from martlet_core.model_rules import ARTIFACT_PREFIX, PUBLISHED_PREFIX

from martlet_trainer.adapter_shape import SHAPE_FIELDS, require_shape
from martlet_trainer.base_models.catalog import Reference, parse_reference
from martlet_trainer.config import MergeConfig, TrainingConfig
from martlet_trainer.data.report import DataReport
from martlet_trainer.data.validate import require_usable, validate_dataset
from martlet_trainer.row_lengths import RowLengths

_REPORTS_KEPT = 256
_CHECKS_AT_A_TIME = 4


class Submissions:
    """Checks what a caller asked for.

    Args:
        artifacts: where data sets and models are.
        models: published model names.
        model_roots: directories that ``file://`` base models may lie in.
        models_dir: prepared base models, one directory a name.
        scratch_dir: where data sets are laid out to be read.
        max_json_bytes: largest .json data set, which is read as a whole.
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
    ) -> None:
        self._artifacts = artifacts
        self._models = models
        self._model_roots = model_roots
        self._datasets = DatasetChecker(artifacts, scratch_dir, max_json_bytes)
        self._lengths = RowLengths(artifacts, models_dir, scratch_dir)
        self._threads = ThreadPoolExecutor(_CHECKS_AT_A_TIME, thread_name_prefix="submission")

    async def check_training(self, tenant: str, config: TrainingConfig) -> None:
        """Refuse a training that can't work.

        Raises:
            NotFound: the base model or a data set doesn't exist, with close matches where there are any.
            InvalidArgument: a data set can't be trained on (field, line, remedy), rows are longer than the model takes, or a
                reference is of the wrong kind.
            PermissionDenied: a local path outside of what the operator allowed.
        """
        await self._in_thread(lambda: self._check_training(tenant, config))

    async def check_merge(self, tenant: str, config: MergeConfig) -> None:
        """Refuse a merge that can't work; see ``check_training``."""
        await self._in_thread(lambda: self._check_merge(tenant, config))

    def _check_training(self, tenant: str, config: TrainingConfig) -> None:
        base = resolve_training_base(config, tenant, self._artifacts, self._models, self._model_roots)
        if base.adapter is not None:
            require_shape(config.tuner, config.base_model, adapter_shape(base.adapter, tenant, self._artifacts))
        names = {"spec.training_dataset": config.training_dataset, "spec.validation_dataset": config.validation_dataset}
        longest = 0
        for field, name in names.items():
            if name:
                report = self._datasets.check(name, tenant, config.data.on_bad_rows, field)
                longest = max(longest, report.longest_row_bytes)
        self._lengths.check(config, base.reference, longest)

    def _check_merge(self, tenant: str, config: MergeConfig) -> None:
        adapter = resolve_adapter(config.adapter, tenant, self._artifacts, self._models)
        resolve_base_model(
            adapter.base_model, tenant, self._artifacts, self._models, self._model_roots, field="spec.adapter"
        )

    async def _in_thread(self, check: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, check)


class DatasetChecker:
    """Validates data sets row by row. An artifact never changes, so its report is kept."""

    def __init__(self, artifacts: ArtifactStore, scratch_dir: Path, max_json_bytes: int) -> None:
        self._artifacts = artifacts
        self._scratch_dir = scratch_dir
        self._max_json_bytes = max_json_bytes
        self._reports: OrderedDict[str, DataReport] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, name: str, tenant: str, on_bad_rows: str, field: str) -> DataReport:
        """The report of a data set that can be trained on.

        Raises:
            NotFound: no such artifact, or another tenant's.
            InvalidArgument: it is no data set, is empty, or has bad rows.
        """
        artifact = get_artifact(self._artifacts, name, tenant, field)
        if artifact.kind != "dataset":
            raise InvalidArgument.field(field, f"{name} is of kind {artifact.kind}; give a data set")
        report = self._report(artifact, field)
        require_usable(report, on_bad_rows, field)
        return report

    def _report(self, artifact: Artifact, field: str) -> DataReport:
        with self._lock:
            if artifact.id in self._reports:
                self._reports.move_to_end(artifact.id)
                return self._reports[artifact.id]
        self._scratch_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch_dir) as directory:
            path = Path(directory) / "dataset"
            self._artifacts.download(artifact.id, path)
            try:
                report = validate_dataset(path, self._max_json_bytes)
            except InvalidArgument as error:
                description = error.violations[0].description if error.violations else error.message
                raise InvalidArgument.field(field, description, reason=error.reason) from error
        with self._lock:
            self._reports[artifact.id] = report
            while len(self._reports) > _REPORTS_KEPT:
                self._reports.popitem(last=False)
        return report


@dataclass(frozen=True)
class TrainingBase:
    """What a training starts from.

    Attributes:
        reference: the whole model.
        adapter: the adapter on it that the training goes on with; None for a new one.
    """

    reference: Reference
    adapter: PublishedModel | None = None


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
    name = config.base_model
    if not _may_be_adapter(name, tenant, artifacts, models):
        return TrainingBase(resolve_base_model(name, tenant, artifacts, models, model_roots))
    adapter = resolve_adapter(name, tenant, artifacts, models, field="spec.base_model")
    if config.tuner.kind == "full":
        text = f"can't be full on {name}, which is an adapter; merge it first, or train an adapter (lora)"
        raise InvalidArgument.field("spec.tuner.kind", text)
    reference = resolve_base_model(adapter.base_model, tenant, artifacts, models, model_roots, field="spec.base_model")
    return TrainingBase(reference, adapter)


def _may_be_adapter(name: str, tenant: str, artifacts: ArtifactStore, models: ModelRegistry) -> bool:
    if name.startswith(PUBLISHED_PREFIX):
        return _get_model(models, name, tenant, "spec.base_model").kind == "adapter"
    if name.startswith(ARTIFACT_PREFIX):
        return get_artifact(artifacts, name, tenant, "spec.base_model").kind in ("adapter", "checkpoint")
    return False


def resolve_base_model(
    base_model: str,
    tenant: str,
    artifacts: ArtifactStore,
    models: ModelRegistry,
    model_roots: tuple[Path, ...],
    *,
    field: str = "spec.base_model",
) -> Reference:
    """What a base model's name stands for now: a published name becomes the artifact behind it.

    Raises:
        NotFound: nothing of that name that the tenant may use; the message and metadata name close matches.
        InvalidArgument: an adapter, or an artifact that is no model.
        PermissionDenied: a local path outside of ``model_roots``.
    """
    reference = parse_reference(base_model, model_roots)
    if reference.kind == "published":
        model = _get_model(models, base_model, tenant, field)
        if model.kind == "adapter":
            raise InvalidArgument.field(field, f"{base_model} is an adapter; a whole model is needed here")
        reference = Reference("artifact", model.artifact_id)
    if reference.kind == "artifact":
        artifact = get_artifact(artifacts, ARTIFACT_PREFIX + reference.value, tenant, field)
        if artifact.kind not in WHOLE_MODEL_KINDS:
            raise InvalidArgument.field(field, f"{base_model} is of kind {artifact.kind}; give a whole model")
    return reference


def resolve_adapter(
    adapter: str, tenant: str, artifacts: ArtifactStore, models: ModelRegistry, *, field: str = "spec.adapter"
) -> PublishedModel:
    """The adapter that a name or ``artifacts/<id>`` stands for, with its base model.

    Raises:
        NotFound: nothing of that name that the tenant may use.
        InvalidArgument: it is no adapter, or doesn't say what its base model is.
    """
    if not adapter.startswith(ARTIFACT_PREFIX):
        model = _get_model(models, adapter, tenant, field)
        if model.kind != "adapter":
            raise InvalidArgument.field(field, f"{adapter} is a whole model already; there is nothing to merge")
        return model
    artifact = get_artifact(artifacts, adapter, tenant, field)
    base_model = artifact.metadata.get("base_model", "")
    if artifact.kind == "checkpoint" and not base_model:
        text = f"{adapter} is a checkpoint; give its model's name, which the job's checkpoints list (fine_tuned_model)"
        raise InvalidArgument.field(field, text)
    if artifact.kind not in ("adapter", "checkpoint") or not base_model:
        raise InvalidArgument.field(field, f"{adapter} is no adapter that names its base model")
    return PublishedModel(
        adapter,
        "adapter",
        tenant,
        artifact.id,
        base_model=base_model,
        lora_rank=int(artifact.metadata.get("lora_rank", 0)),
        source_job=artifact.source_job,
    )


def adapter_shape(adapter: PublishedModel, tenant: str, artifacts: ArtifactStore) -> dict[str, Any]:
    """What is known of an adapter's shape without its files, by the names of ``SHAPE_FIELDS``."""
    metadata = get_artifact(artifacts, ARTIFACT_PREFIX + adapter.artifact_id, tenant, "spec.base_model").metadata
    known = {field: metadata[field] for field in SHAPE_FIELDS if field in metadata}
    return {**known, "lora_rank": adapter.lora_rank} if adapter.lora_rank else known


def get_artifact(artifacts: ArtifactStore, name: str, tenant: str, field: str) -> Artifact:
    """The artifact of ``artifacts/<id>``. NotFound names the field."""
    try:
        return artifacts.get(name.removeprefix(ARTIFACT_PREFIX), tenant=tenant)
    except (NotFound, InvalidArgument) as error:
        raise NotFound(
            f"{field}: {name} doesn't exist.", reason="ARTIFACT_NOT_FOUND", metadata={"name": name}
        ) from error


def _get_model(models: ModelRegistry, name: str, tenant: str, field: str) -> PublishedModel:
    try:
        return models.get(name, tenant=tenant)
    except NotFound as error:
        raise NotFound(f"{field}: {error.message}", reason=error.reason, metadata=error.metadata) from error
