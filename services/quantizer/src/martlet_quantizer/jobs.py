"""What is checked before a job is queued: the model resolves and fits the method, data sets exist, belong to the caller and
can be read. Imports no ML library.
"""

from __future__ import annotations

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from martlet_core.artifacts.types import ArtifactStore, ModelRegistry
from martlet_core.errors import InvalidArgument
from martlet_core.model_rules import ARTIFACT_PREFIX, PUBLISHED_PREFIX
from martlet_inputs.base_models.catalog import Reference
from martlet_inputs.base_models.model_files import files_at_hand
from martlet_inputs.base_models.resolve import get_artifact, get_model, resolve_base_model
from martlet_inputs.datasets import DatasetChecker

from martlet_quantizer.config import MIN_CALIBRATION_ROWS, QuantizationConfig
from martlet_quantizer.methods import check_model_type, find
from martlet_quantizer.rows import check_disjoint, read_rows, require_whole
from martlet_quantizer.weights import check_unquantized, require_config

_CHECKS_AT_A_TIME = 4


class Submissions:
    """Checks what a caller asked for.

    Args:
        artifacts: where data sets and models are.
        models: published model names.
        model_roots: directories that ``file://`` models may lie in.
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
        self._models_dir = models_dir
        self._scratch_dir = scratch_dir
        self._datasets = DatasetChecker(artifacts, scratch_dir, max_json_bytes)
        self._threads = ThreadPoolExecutor(_CHECKS_AT_A_TIME, thread_name_prefix="submission")

    async def check(self, tenant: str, config: QuantizationConfig) -> None:
        """Refuse a quantization that can't work.

        Raises:
            NotFound: the model or a data set doesn't exist, with close matches where there are any.
            InvalidArgument: an adapter, a method that can't take the model, a data set that can't be used.
            FailedPrecondition: the model is quantized already.
            PermissionDenied: a local path outside of what the operator allowed.
        """
        await asyncio.get_running_loop().run_in_executor(self._threads, lambda: self._check(tenant, config))

    def _check(self, tenant: str, config: QuantizationConfig) -> None:
        reference = resolve_model(config.model, tenant, self._artifacts, self._models, self._model_roots)
        files = files_at_hand(reference, self._artifacts, self._models_dir, "spec.model")
        if files is not None:  # else a worker fetches it, and sees
            require_config(files, config.model)
            check_unquantized(files, config.model)
            check_model_type(find(config.method), str(files.config.get("model_type", "")))
        if config.calibration.dataset:
            rows = self._rows_used(config.calibration.dataset, tenant, "spec.calibration.dataset")
            if rows < MIN_CALIBRATION_ROWS:
                raise InvalidArgument.field(
                    "spec.calibration.dataset",
                    f"has {rows} rows; at least {MIN_CALIBRATION_ROWS} are needed. Bring more, or leave it out for the"
                    " built-in texts",
                    reason="TOO_FEW_CALIBRATION_ROWS",
                )
        if config.evaluation_dataset:
            self._rows_used(config.evaluation_dataset, tenant, "spec.evaluation_dataset")
        if config.calibration.dataset and config.evaluation_dataset:
            self._check_disjoint(config.calibration.dataset, config.evaluation_dataset)

    def _rows_used(self, name: str, tenant: str, field: str) -> int:
        report = self._datasets.check(name, tenant, "skip", field)
        require_whole(report, field)
        return report.rows_used

    def _check_disjoint(self, calibration: str, evaluation: str) -> None:
        with tempfile.TemporaryDirectory(dir=self._scratch_dir) as directory:
            rows = []
            for field, name in (("spec.calibration.dataset", calibration), ("spec.evaluation_dataset", evaluation)):
                path = Path(directory) / field
                self._artifacts.download(name.removeprefix(ARTIFACT_PREFIX), path)
                rows.append(read_rows(path, field))
            check_disjoint(*rows)


def resolve_model(
    name: str, tenant: str, artifacts: ArtifactStore, models: ModelRegistry, model_roots: tuple[Path, ...]
) -> Reference:
    """What a job's ``model`` stands for now.

    Raises:
        As ``resolve_base_model``; an adapter is InvalidArgument, and told what to do.
    """
    if _is_adapter(name, tenant, artifacts, models):
        raise InvalidArgument.field(
            "spec.model",
            f"{name} is an adapter; merge it into its base model first (a merge job, `martlet merge {name}`, or a run whose"
            " first step merges) and quantize what comes of that",
            reason="ADAPTER_NOT_MERGED",
        )
    return resolve_base_model(name, tenant, artifacts, models, model_roots, field="spec.model")


def _is_adapter(name: str, tenant: str, artifacts: ArtifactStore, models: ModelRegistry) -> bool:
    if name.startswith(PUBLISHED_PREFIX):
        return get_model(models, name, tenant, "spec.model").kind == "adapter"
    if name.startswith(ARTIFACT_PREFIX):
        return get_artifact(artifacts, name, tenant, "spec.model").kind in ("adapter", "checkpoint")
    return False
