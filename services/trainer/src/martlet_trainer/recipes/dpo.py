"""Direct preference optimization (arXiv 2305.18290): the better answer gains on the worse one, measured from where the model starts."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from martlet_trainer.config import parse_recipe_options
from martlet_trainer.data.examples import encode_preference
from martlet_trainer.recipes.groups import group_lesson
from martlet_trainer.recipes.method import Lesson, Method, MethodInputs
from martlet_trainer.recipes.options import DpoOptions
from martlet_trainer.training.preference import PREFERENCE_MEASURES, Answers, ahead, preference_measures


def _prepare(inputs: MethodInputs) -> Lesson:
    options = parse_recipe_options(inputs.config)
    assert isinstance(options, DpoOptions)

    def loss(answers: Answers) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        gained = answers.log_probs - answers.reference
        if options.loss == "ipo":  # by the token, as the paper's authors have it (huggingface.co/blog/pref-tuning)
            gained = gained / answers.counts
        chosen, rejected = gained.unbind(1)
        losses = ahead(chosen - rejected, options.loss, beta=options.beta, label_smoothing=options.label_smoothing)
        losses = losses - options.sft_weight * answers.means[:, 0]
        return losses, preference_measures(options.beta * chosen, options.beta * rejected)

    return group_lesson(inputs, loss, PREFERENCE_MEASURES, with_reference=True)


METHOD = Method(encode_preference, _prepare)
