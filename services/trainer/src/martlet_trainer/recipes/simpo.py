"""Simple preference optimization (arXiv 2405.14734): the better answer's tokens are likelier on average, by a margin; no reference."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from martlet_trainer.config import parse_recipe_options
from martlet_trainer.data.examples import encode_preference
from martlet_trainer.recipes.groups import group_lesson
from martlet_trainer.recipes.method import Lesson, Method, MethodInputs
from martlet_trainer.recipes.options import SimpoOptions
from martlet_trainer.training.preference import PREFERENCE_MEASURES, Answers, ahead, preference_measures


def _prepare(inputs: MethodInputs) -> Lesson:
    options = parse_recipe_options(inputs.config)
    assert isinstance(options, SimpoOptions)

    def loss(answers: Answers) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        chosen, rejected = answers.means.unbind(1)
        lead = chosen - rejected - options.margin / options.beta
        losses = ahead(lead, "sigmoid", beta=options.beta) - options.sft_weight * chosen
        return losses, preference_measures(options.beta * chosen, options.beta * rejected)

    return group_lesson(inputs, loss, PREFERENCE_MEASURES)


METHOD = Method(encode_preference, _prepare)
