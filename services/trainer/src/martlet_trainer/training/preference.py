"""Losses over whole answers: log-probabilities by row, and what preference learning makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from martlet_trainer.data.examples import EncodedGroup, rows_of
from martlet_trainer.training.batches import Batch
from martlet_trainer.training.computation import Computation
from martlet_trainer.training.loss import Loss


@dataclass(frozen=True)
class GroupBatch:
    """Groups ready for a forward pass.

    Attributes:
        rows: their rows, group by group.
        size: rows in a group.
        reference: log-probabilities of the rows under the model that training started from. Shape (groups, size); no columns
            where nothing was computed.
        good: verdicts. Shape (groups,), bool.
        row_count: groups.
        token_count: tokens of all rows.
    """

    rows: Batch
    size: int
    reference: torch.Tensor
    good: torch.Tensor
    row_count: int
    token_count: int


@dataclass(frozen=True)
class Answers:
    """What a model makes of the answers of a batch of groups.

    Attributes:
        log_probs: log-probability of each row's targets. Shape (groups, size).
        counts: targets in each row. Shape (groups, size).
        reference: as in ``GroupBatch``.
        good: as in ``GroupBatch``.
    """

    log_probs: torch.Tensor
    counts: torch.Tensor
    reference: torch.Tensor
    good: torch.Tensor

    @property
    def means(self) -> torch.Tensor:
        """Mean log-probability of each row's targets. Shape (groups, size)."""
        return self.log_probs / self.counts


#: Loss of each group, and what else is measured of each, by name. Shapes (groups,).
GroupLoss = Callable[[Answers], tuple[torch.Tensor, Mapping[str, torch.Tensor]]]


def group_computation(computation: Computation, loss: GroupLoss, measures: Sequence[str]) -> Computation:
    """A computation on groups on top of one on rows; the loss is a mean over groups."""

    def collate(groups: Sequence[EncodedGroup], device: torch.device) -> GroupBatch:
        return GroupBatch(
            rows=computation.collate(rows_of(groups), device),
            size=len(groups[0].rows),
            reference=torch.tensor([group.reference for group in groups], device=device),
            good=torch.tensor([group.good for group in groups], device=device),
            row_count=len(groups),
            token_count=sum(group.token_count for group in groups),
        )

    def objective(model: nn.Module, batch: GroupBatch) -> Loss:
        losses, measured = loss(answers_of(computation, model, batch))
        return Loss(losses.sum(), {name: value.detach().float().sum() for name, value in measured.items()})

    return replace(computation, collate=collate, objective=objective, measures=tuple(measures))


def answers_of(computation: Computation, model: nn.Module, batch: GroupBatch) -> Answers:
    """Log-probabilities of a batch's answers, with gradient."""
    tokens = computation.log_probs(model, batch.rows)
    rows = batch.row_count * batch.size
    sums = tokens.new_zeros(rows).index_add(0, batch.rows.row_of_target, tokens)
    counts = torch.bincount(batch.rows.row_of_target, minlength=rows)
    shape = (batch.row_count, batch.size)
    return Answers(sums.view(shape), counts.view(shape), batch.reference, batch.good)


def preference_measures(chosen: torch.Tensor, rejected: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is measured of each pair, given the rewards of its answers. Shapes (groups,)."""
    return {
        "reward_accuracy": (chosen > rejected).float(),
        "reward_margin": chosen - rejected,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
    }


#: Names of ``preference_measures``.
PREFERENCE_MEASURES = ("reward_accuracy", "reward_margin", "chosen_reward", "rejected_reward")


def ahead(difference: torch.Tensor, kind: str, *, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """Loss of a pair by how far the chosen answer is ahead of the rejected one.

    Args:
        difference: in nats. Shape (groups,).
        kind: ``sigmoid`` (DPO, arXiv 2305.18290, conservative with label smoothing), ``hinge`` (SLiC, arXiv 2305.10425) or ``ipo``
            (arXiv 2310.12036, whose beta is the paper's tau).
        beta: scale of the difference.
        label_smoothing: share of pairs that are the wrong way round; ``sigmoid`` only.
    """
    if kind == "hinge":
        return functional.relu(1.0 - beta * difference)
    if kind == "ipo":
        return (difference - 1.0 / (2.0 * beta)) ** 2
    scaled = beta * difference
    return -functional.logsigmoid(scaled) * (1.0 - label_smoothing) - functional.logsigmoid(-scaled) * label_smoothing
