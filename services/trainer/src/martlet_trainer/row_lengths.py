"""Rows that are longer than the model's context, found before a job is queued. Imports no ML library.

Counting tokens exactly takes the tokenizer's own library, so a process of its own does it (``data/measure.py``), for jobs
that refuse long rows and have one that may be too long. Where the tokenizer isn't at hand yet (a base model that a worker
will fetch), or time runs out, the worker judges, as it does for every job: by the same code, before it loads the model.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from martlet_core.artifacts.types import Artifact, ArtifactStore
from martlet_core.errors import error_from_dict
from martlet_inputs.base_models.catalog import Reference, find, is_prepared

from martlet_trainer.config import TrainingConfig, resolve_max_length
from martlet_trainer.recipes import RECIPES

logger = logging.getLogger(__name__)

#: Longest time that counting may take, in seconds; the gateway gives a submission five minutes in all.
COUNT_SECONDS = 120.0
#: Files of a model beyond this are weights.
_SMALL_FILE_BYTES = 64 * 1024 * 1024
_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


class RowLengths:
    """Judges lengths at submission.

    Args:
        artifacts: where data sets and models are.
        models_dir: prepared base models, one directory a name.
        scratch_dir: where files are laid out to be read.
    """

    def __init__(self, artifacts: ArtifactStore, models_dir: Path, scratch_dir: Path) -> None:
        self._artifacts = artifacts
        self._models_dir = models_dir
        self._scratch_dir = scratch_dir
        self._one_at_a_time = threading.Lock()  # such a process takes some hundred megabytes

    def check(
        self, config: TrainingConfig, base: Reference, datasets: Mapping[str, str], longest_row_bytes: int
    ) -> None:
        """Refuse a longest row that the model can't take, and rows that are longer, as far as this can be known here.

        Args:
            config: what was asked for.
            base: the whole model that it stands for.
            datasets: artifacts by the request's field that names them.
            longest_row_bytes: of the data sets, see ``DataReport``.

        Raises:
            InvalidArgument: ``max_length`` is beyond the context, or a row is too long and none may be.
        """
        self._scratch_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch_dir) as directory:
            files = self._files(base, Path(directory) / "base_model")
            context = _context_length(base, files)
            context = int(context * config.tuner.context_factor) if context else None
            # Where neither config nor catalogue says it, whoever loads the tokenizer finds it out.
            max_length = resolve_max_length(config.data.max_length, context) if context else 0
            refuses = config.data.on_long_rows == "refuse" or not RECIPES[config.recipe].cuts
            if files is not None and refuses and longest_row_bytes >= max_length:
                self._count(config, files, datasets, Path(directory))

    def _files(self, base: Reference, target: Path) -> Path | None:
        """A directory with the model's config and tokenizer; None if it isn't at hand."""
        if base.kind == "path":
            return Path(base.value)
        if base.kind == "catalog":
            directory = self._models_dir / base.value
            return directory if is_prepared(directory) else None
        if base.kind == "artifact":
            return self._small_files(self._artifacts.get(base.value), target)
        return None  # on the hub: a worker fetches it

    def _small_files(self, artifact: Artifact, target: Path) -> Path:
        for file in artifact.files:
            if file.size_bytes > _SMALL_FILE_BYTES or file.path.endswith(_WEIGHTS):
                continue
            path = target / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                stream.writelines(self._artifacts.open_file(artifact, file.path))
        return target

    def _count(self, config: TrainingConfig, base_model: Path, datasets: Mapping[str, str], directory: Path) -> None:
        laid_out = {}
        for field, name in datasets.items():
            laid_out[field] = str(directory / field)
            self._artifacts.download(name.removeprefix("artifacts/"), directory / field)
        question = {"base_model": str(base_model), "datasets": laid_out, "data": config.data.model_dump(mode="json")}
        question |= {"recipe": config.recipe, "recipe_options": config.recipe_options}
        question |= {"context_factor": config.tuner.context_factor}
        answer = self._ask(question)
        if answer is not None and "error" in answer:
            raise error_from_dict(answer["error"])

    def _ask(self, question: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The process's answer; None if it gave none, which leaves the judgement to the worker."""
        environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "martlet_trainer.data.measure"]
        try:
            with self._one_at_a_time:
                done = subprocess.run(
                    command,
                    input=json.dumps(question),
                    capture_output=True,
                    text=True,
                    timeout=COUNT_SECONDS,
                    env=environ,
                    check=False,
                )
        except subprocess.TimeoutExpired:
            logger.warning("Rows were not counted in %.0f s; the worker will judge their lengths.", COUNT_SECONDS)
            return None
        if done.returncode:
            logger.warning("Counting rows failed; the worker will judge their lengths: %s", done.stderr[-2000:])
            return None
        return json.loads(done.stdout.splitlines()[-1])


def _context_length(base: Reference, files: Path | None) -> int | None:
    """The model's context by its config, else by the catalogue; None if neither says it."""
    try:
        config = json.loads((files / "config.json").read_text(encoding="utf-8")) if files else {}
        stated = (config.get("text_config") or config).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        stated = None  # what is wrong with it, the worker says
    if isinstance(stated, int):
        return stated
    return find(base.value).context_length if base.kind == "catalog" else None
