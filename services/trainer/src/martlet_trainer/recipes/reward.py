"""Reward model (arXiv 2203.02155): a number for each answer, higher for the better one of a pair (Bradley-Terry)."""

from __future__ import annotations

from typing import Any

from torch.nn import functional

from martlet_trainer.config import parse_recipe_options
from martlet_trainer.data.head_examples import encode_judged_pair
from martlet_trainer.recipes.heads import head_lesson, score_head
from martlet_trainer.recipes.method import Lesson, Method, MethodInputs
from martlet_trainer.recipes.options import RewardModelOptions
from martlet_trainer.training.head_batches import HeadBatch
from martlet_trainer.training.loss import Loss
from martlet_trainer.training.preference import PREFERENCE_MEASURES, preference_measures


def _prepare(inputs: MethodInputs) -> Lesson:
    options = parse_recipe_options(inputs.config)
    assert isinstance(options, RewardModelOptions)

    def objective(outputs: Any, batch: HeadBatch) -> Loss:
        chosen, rejected = outputs.logits.float().view(-1, 2).unbind(dim=1)
        losses = -functional.logsigmoid(chosen - rejected)
        losses = losses + options.center_rewards_coefficient * (chosen + rejected) ** 2
        measured = preference_measures(chosen.detach(), rejected.detach())
        return Loss(losses.sum(), {name: value.sum() for name, value in measured.items()})

    return head_lesson(inputs, objective, PREFERENCE_MEASURES)


METHOD = Method(encode_judged_pair, _prepare, score_head)
