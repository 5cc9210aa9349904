"""Group relative policy optimization (arXiv 2402.03300): answers that are better than the others to the same question gain."""

from __future__ import annotations

from martlet_trainer.config import parse_recipe_options
from martlet_trainer.data.examples import encode_question
from martlet_trainer.recipes.answers import rollout_lesson
from martlet_trainer.recipes.method import Lesson, Method, MethodInputs
from martlet_trainer.recipes.options import GrpoOptions
from martlet_trainer.training.rollouts import group_relative


def _prepare(inputs: MethodInputs) -> Lesson:
    options = parse_recipe_options(inputs.config)
    assert isinstance(options, GrpoOptions)
    return rollout_lesson(inputs, options, lambda rewards: group_relative(rewards, scale=options.scale_rewards))


METHOD = Method(encode_question, _prepare)
