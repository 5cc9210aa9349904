"""What the recipes that learn from whole answers share: the computation, and log-probabilities under the model that training starts from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from martlet_trainer.data.examples import EncodedGroup, rows_of
from martlet_trainer.recipes.method import Lesson, MethodInputs, computation_on_rows
from martlet_trainer.training.checkpoint import read_objective
from martlet_trainer.training.computation import Computation
from martlet_trainer.training.preference import GroupLoss, answers_of, group_computation

_SETS = ("training", "validation")


def group_lesson(
    inputs: MethodInputs, loss: GroupLoss, measures: Sequence[str], *, with_reference: bool = False
) -> Lesson:
    """A training on groups.

    Args:
        inputs: examples are ``EncodedGroup``s, all with the same number of rows.
        loss: of each group.
        measures: what it measures beside.
        with_reference: log-probabilities under the model that training starts from are computed, and kept in checkpoints: a training that
            goes on has other weights by then.
    """
    rows = computation_on_rows(inputs, rows_of(inputs.examples))
    computation = group_computation(rows, loss, measures)
    if not with_reference:
        return Lesson(computation, inputs.examples, inputs.validation)
    groups = {"training": inputs.examples, "validation": inputs.validation}
    state: Mapping[str, torch.Tensor] = read_objective(inputs.resume) if inputs.resume is not None else {}
    if not state:
        inputs.report.phase("computing the reference")
        state = {name: _reference(inputs, rows, computation, groups[name]) for name in _SETS}
    examples, validation = (_with_reference(groups[name], state[name]) for name in _SETS)
    return Lesson(computation, examples, validation, state)


@torch.no_grad()
def _reference(
    inputs: MethodInputs, rows: Computation, computation: Computation, groups: Sequence[EncodedGroup]
) -> torch.Tensor:
    """Log-probabilities of the groups' rows under the model as it is now, shared out among the processes. Shape (groups, size)."""
    processes, size = inputs.processes, inputs.config.hyperparameters.per_device_batch_size
    width = len(groups[0].rows) if groups else 0
    found = torch.zeros((len(groups), width), dtype=torch.float64)
    with _evaluating(inputs.tuner.model), processes.computing():
        for start in range(processes.rank * size, len(groups), processes.count * size):
            inputs.check_stop()
            batch = computation.collate(groups[start : start + size], inputs.placement.device)
            answers = answers_of(rows, inputs.tuner.model, batch)
            found[start : start + size] = answers.log_probs.double().cpu()
    return torch.tensor(processes.sum(found.flatten().tolist()), dtype=torch.float32).view_as(found)


def _with_reference(groups: Sequence[EncodedGroup], reference: torch.Tensor) -> list[EncodedGroup]:
    return [replace(group, reference=tuple(row)) for group, row in zip(groups, reference.tolist(), strict=True)]


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()
