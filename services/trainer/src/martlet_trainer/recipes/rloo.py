"""REINFORCE leave-one-out (arXiv 2402.14740): each answer is measured against the mean of the others to the same question."""

from __future__ import annotations

from martlet_trainer.config import parse_recipe_options
from martlet_trainer.data.examples import encode_question
from martlet_trainer.recipes.answers import rollout_lesson
from martlet_trainer.recipes.method import Lesson, Method, MethodInputs
from martlet_trainer.recipes.options import RlooOptions
from martlet_trainer.training.rollouts import leave_one_out


def _prepare(inputs: MethodInputs) -> Lesson:
    options = parse_recipe_options(inputs.config)
    assert isinstance(options, RlooOptions)
    return rollout_lesson(inputs, options, leave_one_out)


METHOD = Method(encode_question, _prepare)
