"""What a text is: one of several classes, any of them, or numbers. The losses are transformers' own for each problem type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from martlet_trainer.config import parse_recipe_options
from martlet_trainer.data.head_examples import encode_labelled
from martlet_trainer.labels import label_id
from martlet_trainer.recipes.heads import head_lesson
from martlet_trainer.recipes.method import HeadInputs, Lesson, Method, MethodInputs
from martlet_trainer.recipes.options import SequenceClassificationOptions
from martlet_trainer.training.head_batches import HeadBatch
from martlet_trainer.training.heads import Head
from martlet_trainer.training.loss import Loss
from martlet_trainer.training.scores import macro_f1, micro_f1, spearman


def _head(inputs: HeadInputs) -> Head:
    options = parse_recipe_options(inputs.config)
    assert isinstance(options, SequenceClassificationOptions)
    return Head("sequence_classification", inputs.labels, options.problem_type)


def _prepare(inputs: MethodInputs) -> Lesson:
    problem, names = inputs.head.problem_type, inputs.head.labels

    def wanted(batch: HeadBatch, like: torch.Tensor) -> torch.Tensor:
        """Classes as many-hot rows, or numbers. Shape (examples, outputs)."""
        targets = np.zeros(like.shape, dtype=np.float32)
        for row, example in zip(targets, batch.examples, strict=True):
            if problem == "regression":
                row[:] = example.target
            else:
                row[[label_id(names, label) for label in example.target]] = 1.0
        return torch.from_numpy(targets).to(like.device)

    def objective(outputs: Any, batch: HeadBatch) -> Loss:
        logits = outputs.logits.float()
        targets = wanted(batch, logits)
        found = logits.detach()

        def records() -> Sequence[Any]:
            return list(zip(found.tolist(), targets.tolist(), strict=True))

        if problem == "regression":
            squares = functional.mse_loss(logits, targets, reduction="none").mean(dim=1)
            return Loss(squares.sum(), {"mse": squares.detach().sum()}, records)
        if problem == "multi_label_classification":
            losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
            right = ((found > 0) == (targets > 0)).all(dim=1)
        else:
            losses = functional.cross_entropy(logits, targets.argmax(dim=1), reduction="none")
            right = found.argmax(dim=1) == targets.argmax(dim=1)
        return Loss(losses.sum(), {"accuracy": right.float().sum()}, records)

    measures = ("mse",) if problem == "regression" else ("accuracy",)
    return head_lesson(inputs, objective, measures, _SCORES[problem])


def _arrays(records: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and targets. Shapes (examples, outputs)."""
    found, targets = (np.asarray(part, dtype=np.float64) for part in zip(*records, strict=True))
    return found, targets


def _single(records: Sequence[Any]) -> dict[str, float]:
    found, targets = _arrays(records)
    chosen = np.zeros_like(targets, dtype=bool)
    chosen[np.arange(len(found)), found.argmax(axis=1)] = True
    return {"macro_f1": macro_f1(chosen, targets > 0)}


def _multi(records: Sequence[Any]) -> dict[str, float]:
    found, targets = _arrays(records)
    return {"micro_f1": micro_f1(found > 0, targets > 0), "macro_f1": macro_f1(found > 0, targets > 0)}


def _regression(records: Sequence[Any]) -> dict[str, float]:
    """The mean over the outputs, where there are several."""
    found, targets = _arrays(records)
    return {"spearman": float(np.mean([spearman(*pair) for pair in zip(found.T, targets.T, strict=True)]))}


_SCORES = {
    "single_label_classification": _single,
    "multi_label_classification": _multi,
    "regression": _regression,
}

METHOD = Method(encode_labelled, _prepare, _head)
