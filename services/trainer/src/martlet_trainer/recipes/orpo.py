"""Odds ratio preference optimization (arXiv 2403.07691): the better answer is learned, and its odds pull away from the worse one's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from martlet_trainer.config import parse_recipe_options
from martlet_trainer.data.examples import encode_preference
from martlet_trainer.recipes.groups import group_lesson
from martlet_trainer.recipes.method import Lesson, Method, MethodInputs
from martlet_trainer.recipes.options import OrpoOptions
from martlet_trainer.training.preference import PREFERENCE_MEASURES, Answers, preference_measures


def _prepare(inputs: MethodInputs) -> Lesson:
    options = parse_recipe_options(inputs.config)
    assert isinstance(options, OrpoOptions)

    def loss(answers: Answers) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        chosen, rejected = answers.means.unbind(1)
        # log of odds p / (1 - p), of the mean probability of a token
        odds = (chosen - rejected) - (torch.log1p(-chosen.exp()) - torch.log1p(-rejected.exp()))
        losses = -chosen - options.beta * functional.logsigmoid(odds)
        return losses, preference_measures(options.beta * chosen, options.beta * rejected)

    return group_lesson(inputs, loss, PREFERENCE_MEASURES)


METHOD = Method(encode_preference, _prepare)
