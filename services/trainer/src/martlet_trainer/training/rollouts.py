"""Answers of the model that is being trained, and what they are worth: learning from rewards (GRPO, RLOO)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from martlet_trainer.data.examples import EncodedPrompt
from martlet_trainer.rewards import Rewards
from martlet_trainer.training.batches import Batch
from martlet_trainer.training.computation import Computation
from martlet_trainer.training.loss import Loss
from martlet_trainer.training.sampling import Answering, Drawn

#: Advantage of each answer, given the rewards of all answers to a question. Shapes (questions, answers).
Advantages = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Rollouts:
    """How answers are made and judged.

    Attributes:
        sampler: of the model that is being trained.
        epsilon: how far a token's probability may move from that with which it was drawn, as a share, before the token teaches no more
            (PPO, arXiv 1707.06347); for answers of other weights than those that learn.
        rewards: by name, with weights: their sum is the reward.
        count: answers to each question; one, the likeliest, where the model isn't in training mode.
    """

    sampler: Answering
    rewards: Mapping[str, tuple[float, Rewards]]
    count: int
    epsilon: float | None = None


@dataclass(frozen=True)
class RolloutBatch:
    """Questions with their answers.

    Attributes:
        rows: questions and answers as tokens, question by question.
        rewards: Shape (questions, answers).
        parts: each reward by name, not weighted. Shapes (questions, answers).
        lengths: tokens of the answers. Shape (questions, answers).
        drawn_with: log-probabilities with which the targets of ``rows`` were drawn; None where the model as it is drew them. Shape (targets,).
        row_count: questions.
        token_count: tokens of all rows.
    """

    rows: Batch
    rewards: torch.Tensor
    parts: Mapping[str, torch.Tensor]
    lengths: torch.Tensor
    drawn_with: torch.Tensor | None
    row_count: int
    token_count: int


def rollout_computation(
    computation: Computation, rollouts: Rollouts, advantages: Advantages, beta: float
) -> Computation:
    """A computation on questions on top of one on rows.

    Answered in this process, each step has the model's answers as it is, so that the policy which answered is the one that learns: the clipped
    ratio of PPO is 1, and its gradient is that of the log-probabilities times the advantage. Answers of replicas come with the
    log-probabilities that they were drawn with: those of the same weights in another arithmetic, or of weights some steps older; the
    ratio is to them, and clipped. Validation answers greedily; its loss is the reward with the sign turned.

    Args:
        computation: on rows.
        rollouts: how answers are made.
        advantages: of the answers to a question.
        beta: weight of the divergence from the model without its adapter, by the estimator of arXiv 2402.03300; 0 computes none.
    """

    def collate(prompts: Sequence[EncodedPrompt], device: torch.device) -> RolloutBatch:
        training = rollouts.sampler.model.training
        answered = rollouts.sampler.answer(
            prompts, device, count=rollouts.count if training else 1, likeliest=not training
        )
        rows, said = [found.row for found in answered], [found.answer for found in answered]
        shape = (len(prompts), -1)
        parts = {
            name: torch.tensor(reward(said), device=device, dtype=torch.float32).view(shape)
            for name, (_, reward) in rollouts.rewards.items()
        }
        total = torch.stack([parts[name] * weight for name, (weight, _) in rollouts.rewards.items()]).sum(0)
        lengths = torch.tensor([answer.tokens for answer in said], device=device, dtype=torch.float32)
        tokens = sum(row.token_count for row in rows)
        batch = computation.collate(rows, device)
        drawn_with = _drawn_with(batch, answered, device)
        return RolloutBatch(batch, total, parts, lengths.view(shape), drawn_with, len(prompts), tokens)

    def objective(model: nn.Module, batch: RolloutBatch) -> Loss:
        measured = {
            "reward": batch.rewards.mean(1).sum(),
            **{f"reward_{name}": part.mean(1).sum() for name, part in batch.parts.items()},
            "completion_length": batch.lengths.mean(1).sum(),
        }
        if not model.training:
            none = torch.zeros((), device=batch.rewards.device)
            return Loss(-measured["reward"], {**measured, **dict.fromkeys(("reward_std", "kl", *moved), none)})
        measured["reward_std"] = batch.rewards.std(1, correction=0).sum()
        loss, found = _policy_loss(model, batch)
        return Loss(loss, {**measured, **found})

    def _policy_loss(model: nn.Module, batch: RolloutBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        log_probs = computation.log_probs(model, batch.rows)
        row_of = batch.rows.row_of_target
        value = advantages(batch.rewards).flatten().to(log_probs.dtype)[row_of]
        if batch.drawn_with is None or rollouts.epsilon is None:
            per_token, found = -value * (log_probs - log_probs.detach()).exp(), {}
        else:
            ratio = (log_probs - batch.drawn_with).exp()
            whole, clipped = ratio * value, ratio.clamp(1 - rollouts.epsilon, 1 + rollouts.epsilon) * value
            per_token = -torch.minimum(whole, clipped)
            parts = ratio.detach(), (clipped < whole).to(ratio.dtype)
            found = {name: _mean_by_row(part, batch) for name, part in zip(moved, parts, strict=True)}
        divergence = torch.zeros_like(log_probs)
        if beta:
            with torch.no_grad(), rollouts.sampler.model.disable_adapter():
                ahead = computation.log_probs(model, batch.rows)
            apart = ahead - log_probs
            divergence = apart.exp() - apart - 1.0
            per_token = per_token + beta * divergence
        return _mean_by_row(per_token, batch), {**found, "kl": _mean_by_row(divergence.detach(), batch)}

    moved = () if rollouts.epsilon is None else ("importance_ratio", "clipped")
    names = (
        "reward",
        *(f"reward_{name}" for name in rollouts.rewards),
        "completion_length",
        "reward_std",
        "kl",
        *moved,
    )
    return replace(computation, collate=collate, objective=objective, measures=names, begin=rollouts.sampler.begin)


def group_relative(rewards: torch.Tensor, *, scale: bool) -> torch.Tensor:
    """By how much each answer is better than the mean of all to its question (GRPO, arXiv 2402.03300), in units of their spread or as it is."""
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + 1e-4) if scale else centred


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """By how much each answer is better than the mean of the others to its question (RLOO, arXiv 2402.14740)."""
    count = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * count / (count - 1)


def _drawn_with(batch: Batch, answered: Sequence[Drawn], device: torch.device) -> torch.Tensor | None:
    """The answers' log-probabilities in the order of the batch's targets. Shape (targets,)."""
    parts = [found.log_probs for found in answered]
    order = torch.unique_consecutive(batch.row_of_target).tolist()
    found = [part for row in order if (part := parts[row]) is not None]
    return torch.from_numpy(np.concatenate(found)).to(device) if len(found) == len(parts) else None


def _mean_by_row(values: torch.Tensor, batch: RolloutBatch) -> torch.Tensor:
    """Sum over questions of the mean over their answers of the mean over an answer's tokens."""
    rows = batch.rewards.numel()
    row_of = batch.rows.row_of_target
    sums = values.new_zeros(rows).index_add(0, row_of, values)
    return (sums / torch.bincount(row_of, minlength=rows)).sum() / batch.rewards.shape[1]
