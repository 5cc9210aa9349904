"""Contrastive preference optimization (arXiv 2401.08417): as DPO without a reference, and the better answer is learned beside."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from martlet_trainer.config import parse_recipe_options
from martlet_trainer.data.examples import encode_preference
from martlet_trainer.recipes.groups import group_lesson
from martlet_trainer.recipes.method import Lesson, Method, MethodInputs
from martlet_trainer.recipes.options import CpoOptions
from martlet_trainer.training.preference import PREFERENCE_MEASURES, Answers, ahead, preference_measures


def _prepare(inputs: MethodInputs) -> Lesson:
    options = parse_recipe_options(inputs.config)
    assert isinstance(options, CpoOptions)

    def loss(answers: Answers) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        chosen, rejected = answers.log_probs.unbind(1)
        losses = ahead(chosen - rejected, "sigmoid", beta=options.beta) - options.sft_weight * answers.means[:, 0]
        return losses, preference_measures(options.beta * chosen, options.beta * rejected)

    return group_lesson(inputs, loss, PREFERENCE_MEASURES)


METHOD = Method(encode_preference, _prepare)
