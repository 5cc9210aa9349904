"""Odds ratio preference optimization (arXiv 2403.07691): the better answer is learned, and its odds pull away from the worse one's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from martlet_core.recipe import RecipeResult, Report, ShouldStop
from torch.nn import functional

from martlet_trainer.config import parse_recipe_options
from martlet_trainer.data.examples import encode_preference
from martlet_trainer.recipes.groups import group_lesson
from martlet_trainer.recipes.options import OrpoOptions
from martlet_trainer.recipes.training import Lesson, Method, MethodInputs, run_method, train_by
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


METHOD = Method("martlet_trainer.recipes.orpo:train", encode_preference, _prepare)


def run(values: Mapping[str, Any], workdir: Path, report: Report, should_stop: ShouldStop) -> RecipeResult:
    """See ``run_method``."""
    return run_method(METHOD, values, workdir, report, should_stop)


def train(values: Mapping[str, Any], workdir: Path, report: Report, should_stop: ShouldStop) -> RecipeResult:
    """One process of the training."""
    return train_by(METHOD, values, workdir, report, should_stop)
