"""Answers of the model that is being trained, and what they are worth: learning from rewards (GRPO, RLOO)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from martlet_trainer.data.examples import EncodedPrompt
from martlet_trainer.rewards import Rewards
from martlet_trainer.training.batches import Batch
from martlet_trainer.training.computation import Computation
from martlet_trainer.training.loss import Loss
from martlet_trainer.training.sampling import Sampler

#: Advantage of each answer, given the rewards of all answers to a question. Shapes (questions, answers).
Advantages = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Rollouts:
    """How answers are made and judged.

    Attributes:
        sampler: of the model that is being trained.
        rewards: by name, with weights: their sum is the reward.
        count: answers to each question; one, the likeliest, where the model isn't in training mode.
    """

    sampler: Sampler
    rewards: Mapping[str, tuple[float, Rewards]]
    count: int


@dataclass(frozen=True)
class RolloutBatch:
    """Questions with their answers.

    Attributes:
        rows: questions and answers as tokens, question by question.
        rewards: Shape (questions, answers).
        parts: each reward by name, not weighted. Shapes (questions, answers).
        lengths: tokens of the answers. Shape (questions, answers).
        row_count: questions.
        token_count: tokens of all rows.
    """

    rows: Batch
    rewards: torch.Tensor
    parts: Mapping[str, torch.Tensor]
    lengths: torch.Tensor
    row_count: int
    token_count: int


def rollout_computation(
    computation: Computation, rollouts: Rollouts, advantages: Advantages, beta: float
) -> Computation:
    """A computation on questions on top of one on rows.

    Each step answers its questions with the model as it is, so that the policy which answered is the one that learns: the clipped
    ratio of PPO is 1, and its gradient is that of the log-probabilities times the advantage. Validation answers greedily; its loss is the
    reward with the sign turned.

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
        rows, said = [row for row, _ in answered], [answer for _, answer in answered]
        shape = (len(prompts), -1)
        parts = {
            name: torch.tensor(reward(said), device=device, dtype=torch.float32).view(shape)
            for name, (_, reward) in rollouts.rewards.items()
        }
        total = torch.stack([parts[name] * weight for name, (weight, _) in rollouts.rewards.items()]).sum(0)
        lengths = torch.tensor([answer.tokens for answer in said], device=device, dtype=torch.float32)
        tokens = sum(row.token_count for row in rows)
        return RolloutBatch(computation.collate(rows, device), total, parts, lengths.view(shape), len(prompts), tokens)

    def objective(model: nn.Module, batch: RolloutBatch) -> Loss:
        measured = {
            "reward": batch.rewards.mean(1).sum(),
            **{f"reward_{name}": part.mean(1).sum() for name, part in batch.parts.items()},
            "completion_length": batch.lengths.mean(1).sum(),
        }
        if not model.training:
            none = torch.zeros((), device=batch.rewards.device)
            return Loss(-measured["reward"], {**measured, "reward_std": none, "kl": none})
        measured["reward_std"] = batch.rewards.std(1, correction=0).sum()
        loss, divergence = _policy_loss(model, batch)
        return Loss(loss, {**measured, "kl": divergence})

    def _policy_loss(model: nn.Module, batch: RolloutBatch) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs = computation.log_probs(model, batch.rows)
        row_of = batch.rows.row_of_target
        value = advantages(batch.rewards).flatten().to(log_probs.dtype)
        per_token = -value[row_of] * (log_probs - log_probs.detach()).exp()
        divergence = torch.zeros_like(log_probs)
        if beta:
            with torch.no_grad(), rollouts.sampler.model.disable_adapter():
                ahead = computation.log_probs(model, batch.rows)
            apart = ahead - log_probs
            divergence = apart.exp() - apart - 1.0
            per_token = per_token + beta * divergence
        return _mean_by_row(per_token, batch), _mean_by_row(divergence.detach(), batch)

    names = ("reward", *(f"reward_{name}" for name in rollouts.rewards), "completion_length", "reward_std", "kl")
    return replace(computation, collate=collate, objective=objective, measures=names)


def group_relative(rewards: torch.Tensor, *, scale: bool) -> torch.Tensor:
    """By how much each answer is better than the mean of all to its question (GRPO, arXiv 2402.03300), in units of their spread or as it is."""
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + 1e-4) if scale else centred


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """By how much each answer is better than the mean of the others to its question (RLOO, arXiv 2402.14740)."""
    count = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * count / (count - 1)


def _mean_by_row(values: torch.Tensor, batch: RolloutBatch) -> torch.Tensor:
    """Sum over questions of the mean over their answers of the mean over an answer's tokens."""
    rows = batch.rewards.numel()
    row_of = batch.rows.row_of_target
    sums = values.new_zeros(rows).index_add(0, row_of, values)
    return (sums / torch.bincount(row_of, minlength=rows)).sum() / batch.rewards.shape[1]
