"""Learning from a teacher's distributions instead of single tokens: generalized knowledge distillation (GKD, arXiv 2306.13649)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from martlet_trainer.data.encode import EncodedRow
from martlet_trainer.data.examples import EncodedExchange
from martlet_trainer.training.batches import Batch
from martlet_trainer.training.computation import Computation
from martlet_trainer.training.loss import Loss, Predictions, by_slices
from martlet_trainer.training.sampling import Answering, Sampler


@dataclass(frozen=True)
class Teacher:
    """A frozen model to learn from.

    Attributes:
        sampler: draws its answers, and holds it.
        computation: how it computes on rows.
    """

    sampler: Sampler
    computation: Computation


@dataclass(frozen=True)
class Distillation:
    """What is learned from.

    Attributes:
        beta: of the divergence, see ``divergence``.
        student_share: share of the training batches whose answers the student draws (the paper's lambda).
        teacher_draws: the teacher draws the answers of the other batches; else they are the rows' own.
    """

    beta: float
    student_share: float
    teacher_draws: bool


@dataclass(frozen=True)
class DistillationBatch:
    """Answers for both models.

    Attributes:
        rows: for the student.
        teacher_rows: the same for the teacher.
        drawn: whether the student drew the answers.
        row_count: rows.
        token_count: tokens of all rows.
    """

    rows: Batch
    teacher_rows: Batch
    drawn: bool
    row_count: int
    token_count: int


#: What is measured beside the loss.
MEASURES = ("on_policy", "completion_length")


def divergence(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """The generalized Jensen-Shannon divergence of each target: equation 1 of arXiv 2306.13649 as TRL's ``GKDTrainer`` has it.

    Args:
        student: its logits. Shape (targets, vocabulary).
        teacher: its logits. Shape (targets, vocabulary).
        beta: weight of the teacher in the mixture; 0 is KL(teacher || student), 1 KL(student || teacher).

    Returns:
        In nats. Shape (targets,).
    """
    ours, theirs = student.log_softmax(dim=1), teacher.log_softmax(dim=1)
    if beta == 0:
        return _kl(theirs, ours)
    if beta == 1:
        return _kl(ours, theirs)
    mixture = torch.logaddexp(ours + math.log1p(-beta), theirs + math.log(beta))
    return beta * _kl(theirs, mixture) + (1 - beta) * _kl(ours, mixture)


def distillation_computation(
    computation: Computation, student: Answering, teacher: Teacher, what: Distillation
) -> Computation:
    """A computation on questions and answers on top of one on rows.

    The loss of a row is the mean over its answer's tokens, as the paper has it; no gradient goes through the drawing. Whether a batch is
    drawn comes from torch's random state, which checkpoints hold. Validation is on the rows' own answers.
    """

    def choose(examples: Sequence[EncodedExchange], device: torch.device) -> tuple[list[EncodedRow], bool]:
        questions = [example.question for example in examples]
        if student.model.training and float(torch.rand(())) < what.student_share:
            return [found.row for found in student.answer(questions, device)], True
        if student.model.training and what.teacher_draws:
            return [found.row for found in teacher.sampler.answer(questions, device)], False
        return [example.answered for example in examples if example.answered is not None], False

    def collate(examples: Sequence[EncodedExchange], device: torch.device) -> DistillationBatch:
        rows, drawn = choose(examples, device)
        batches = (computation.collate(rows, device), teacher.computation.collate(rows, device))
        return DistillationBatch(*batches, drawn, len(rows), sum(row.token_count for row in rows))

    def objective(model: nn.Module, batch: DistillationBatch) -> Loss:
        with torch.no_grad():
            theirs = teacher.computation.predict(teacher.sampler.model, batch.teacher_rows)
        ours = computation.predict(model, batch.rows)
        lengths = torch.bincount(ours.row_of_target, minlength=batch.row_count)
        loss = _apart(ours, theirs, what.beta) / lengths[ours.row_of_target]
        drawn = torch.tensor(float(batch.drawn * batch.row_count), device=loss.device)
        return Loss(loss.sum(), {"on_policy": drawn, "completion_length": lengths.float().sum()})

    return replace(computation, collate=collate, objective=objective, measures=MEASURES, begin=student.begin)


def _apart(ours: Predictions, theirs: Predictions, beta: float) -> torch.Tensor:
    """Divergence at each target, without keeping logits. Output heads may be padded beyond the tokens that the models share."""
    width = min(ours.vocabulary, theirs.vocabulary)

    def values(start: int, stop: int) -> torch.Tensor:
        with torch.no_grad():
            wanted = theirs.logits(start, stop)[:, :width]
        return divergence(ours.logits(start, stop)[:, :width], wanted, beta)

    return by_slices(values, len(ours.row_of_target), width)


def _kl(of: torch.Tensor, against: torch.Tensor) -> torch.Tensor:
    return functional.kl_div(against, of, reduction="none", log_target=True).sum(dim=1)
