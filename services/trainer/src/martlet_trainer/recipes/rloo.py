"""REINFORCE leave-one-out (arXiv 2402.14740): each answer is measured against the mean of the others to the same question."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from martlet_core.recipe import RecipeResult, Report, ShouldStop

from martlet_trainer.config import parse_recipe_options
from martlet_trainer.data.examples import encode_question
from martlet_trainer.recipes.answers import rollout_lesson
from martlet_trainer.recipes.options import RlooOptions
from martlet_trainer.recipes.training import Lesson, Method, MethodInputs, run_method, train_by
from martlet_trainer.training.rollouts import leave_one_out


def _prepare(inputs: MethodInputs) -> Lesson:
    options = parse_recipe_options(inputs.config)
    assert isinstance(options, RlooOptions)
    return rollout_lesson(inputs, options, leave_one_out)


METHOD = Method("martlet_trainer.recipes.rloo:train", encode_question, _prepare)


def run(values: Mapping[str, Any], workdir: Path, report: Report, should_stop: ShouldStop) -> RecipeResult:
    """See ``run_method``."""
    return run_method(METHOD, values, workdir, report, should_stop)


def train(values: Mapping[str, Any], workdir: Path, report: Report, should_stop: ShouldStop) -> RecipeResult:
    """One process of the training."""
    return train_by(METHOD, values, workdir, report, should_stop)
