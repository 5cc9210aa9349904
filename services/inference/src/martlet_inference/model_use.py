"""What a model directory is for, read from its files: ``config.json`` and sentence-transformers' ``modules.json``. No ML library is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core.errors import FailedPrecondition
from martlet_core.model_tasks import RERANK, ROUTES, SCORE, ModelTask

#: Ends of architectures' names, the first that fits counts. The names are those of transformers' auto classes.
_TASKS_BY_ARCHITECTURE = (
    ("ForSequenceClassification", ModelTask.SEQUENCE_CLASSIFICATION),
    ("ForTokenClassification", ModelTask.TOKEN_CLASSIFICATION),
    ("ForCausalLM", ModelTask.CAUSAL_LM),
    ("LMHeadModel", ModelTask.CAUSAL_LM),
    ("ForConditionalGeneration", ModelTask.CAUSAL_LM),
    ("ForMaskedLM", ModelTask.EMBEDDING),
    ("Model", ModelTask.EMBEDDING),
)
#: Keys that sentence-transformers' cross-encoders have in config.json, in newer and older versions.
CROSS_ENCODER_KEYS = ("sentence_transformers", "sbert_ce_default_activation_function")
#: transformers' default for a head whose configuration names no labels.
_DEFAULT_LABELS = 2


@dataclass(frozen=True)
class ModelUse:
    """What a whole model is for.

    Attributes:
        task: what it was made for.
        routes: paths at the gateway on which it answers.
    """

    task: ModelTask
    routes: tuple[str, ...]

    @property
    def generates(self) -> bool:
        """Whether it generates text."""
        return self.task is ModelTask.CAUSAL_LM


CAUSAL_LM = ModelUse(ModelTask.CAUSAL_LM, ROUTES[ModelTask.CAUSAL_LM])


def use_of(directory: Path, told: ModelTask | None = None) -> ModelUse:
    """What the model in a directory is for.

    Args:
        directory: an ordinary Hugging Face or sentence-transformers model.
        told: what its artifact's metadata says. It tells classifiers of one label apart, which their files can't.

    Raises:
        FailedPrecondition: reason ``TASK_MISMATCH``: the files have no head for what was told.
    """
    config = read_json(directory / "config.json")
    found = _task_of(directory, config)
    task = told or found
    pooled_decoder = task is ModelTask.EMBEDDING and found is ModelTask.CAUSAL_LM
    if _head(task) is not _head(found) and not pooled_decoder:
        raise FailedPrecondition(
            f"The model is published for {task.value}, but its files are those of a model for {found.value}; publish it "
            "again with the task that it was trained for.",
            reason="TASK_MISMATCH",
        )
    routes = ROUTES[task]
    if _head(task) is ModelTask.SEQUENCE_CLASSIFICATION and label_count(config) != 1:
        routes = tuple(route for route in routes if route not in (SCORE, RERANK))
    return ModelUse(task, routes)


def label_count(config: Mapping[str, Any]) -> int:
    """Outputs of a classification head."""
    labels = config.get("id2label")
    return len(labels) if labels else int(config.get("num_labels", _DEFAULT_LABELS))


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object of a model directory; empty if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _task_of(directory: Path, config: Mapping[str, Any]) -> ModelTask:
    architecture = next(iter(config.get("architectures") or ()), "")
    task = next((task for end, task in _TASKS_BY_ARCHITECTURE if architecture.endswith(end)), ModelTask.CAUSAL_LM)
    if task is ModelTask.SEQUENCE_CLASSIFICATION and any(config.get(key) for key in CROSS_ENCODER_KEYS):
        return ModelTask.RERANKER
    if task is ModelTask.CAUSAL_LM and (directory / "modules.json").is_file():
        return ModelTask.EMBEDDING  # sentence-transformers keeps the name of the decoder that it pools
    return task


def _head(task: ModelTask) -> ModelTask:
    """Tasks that share a kind of head."""
    scored = (ModelTask.RERANKER, ModelTask.REWARD)
    return ModelTask.SEQUENCE_CLASSIFICATION if task in scored else task
