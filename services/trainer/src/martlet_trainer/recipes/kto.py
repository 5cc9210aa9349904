"""Kahneman-Tversky optimization (arXiv 2402.01306): single answers that are called good or bad, no pairs.

How far the model has moved as a whole is estimated from answers of other rows (each prompt with the next row's answer), as the paper
does; both sides of the loss are measured from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from martlet_core.errors import InvalidArgument

from martlet_trainer.config import parse_recipe_options
from martlet_trainer.data.encode import EncodedRow
from martlet_trainer.data.examples import EncodedGroup, encode_feedback
from martlet_trainer.recipes.groups import group_lesson
from martlet_trainer.recipes.method import Lesson, Method, MethodInputs
from martlet_trainer.recipes.options import KtoOptions
from martlet_trainer.training.preference import Answers

_MEASURES = ("kl", "good_reward", "bad_reward", "reward_margin", "reward_accuracy")


def _prepare(inputs: MethodInputs) -> Lesson:
    options = parse_recipe_options(inputs.config)
    assert isinstance(options, KtoOptions)
    _check(inputs)
    rows = _GoodRows(inputs)

    def loss(answers: Answers) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        gained, elsewhere = (answers.log_probs - answers.reference).unbind(1)
        moved = elsewhere.detach().mean().clamp(min=0.0)
        sign = torch.where(answers.good, 1.0, -1.0)
        weight = torch.where(answers.good, options.desirable_weight, options.undesirable_weight)
        losses = weight * (1.0 - torch.sigmoid(options.beta * sign * (gained - moved)))
        reward, good = options.beta * gained.detach(), answers.good.float()
        # Means over the rows of a kind: what is measured is divided by all rows.
        of_good, of_bad = reward * good / rows.share, reward * (1.0 - good) / (1.0 - rows.share)
        measured = {
            "kl": moved.expand_as(reward),
            "good_reward": of_good,
            "bad_reward": of_bad,
            "reward_margin": of_good - of_bad,
            "reward_accuracy": (sign * (gained - moved) > 0).float(),
        }
        return losses, measured

    max_length = inputs.config.data.max_length or 0
    mismatched = replace(
        inputs,
        examples=_with_strangers(inputs.examples, max_length),
        validation=_with_strangers(inputs.validation, max_length),
    )
    lesson = group_lesson(mismatched, loss, _MEASURES, with_reference=True)
    return replace(lesson, computation=replace(lesson.computation, begin=rows.begin))


class _GoodRows:
    """The share of good rows among those that are looked at: the training's, or a validation's.

    Args:
        inputs: of the method; what is there has rows of both kinds.
    """

    share: float

    def __init__(self, inputs: MethodInputs) -> None:
        self._of_training, self._of_validation = (
            sum(group.good for group in groups) / max(1, len(groups)) for groups in (inputs.examples, inputs.validation)
        )
        self.share = self._of_training

    def begin(self, step: int, *, validating: bool) -> None:
        """A ``Begin`` of a computation."""
        self.share = self._of_validation if validating else self._of_training


def _check(inputs: MethodInputs) -> None:
    """Raises InvalidArgument where there is nothing to tell apart, or no other row's answer."""
    for name, groups in (("training_dataset", inputs.examples), ("validation_dataset", inputs.validation)):
        verdicts = {group.good for group in groups}
        if len(verdicts) == 1:
            missing = "bad (label false)" if True in verdicts else "good (label true)"
            raise InvalidArgument.field(f"spec.{name}", f"has no {missing} answers; kto needs both")
    if inputs.config.hyperparameters.per_device_batch_size < 2:
        raise InvalidArgument.field(
            "spec.hyperparameters.per_device_batch_size",
            "is 1; kto needs at least 2, to tell how far the model has moved",
        )


def _with_strangers(groups: Sequence[EncodedGroup], max_length: int) -> list[EncodedGroup]:
    """Each row, and its prompt with the answer of the row behind it."""
    return [
        replace(group, rows=(group.rows[0], _mixed(group.rows[0], groups[(i + 1) % len(groups)].rows[0], max_length)))
        for i, group in enumerate(groups)
    ]


def _mixed(asked: EncodedRow, answered: EncodedRow, max_length: int) -> EncodedRow:
    prompt, answer = int(np.argmax(asked.is_target)), int(np.argmax(answered.is_target))
    prompt = max(1, min(prompt, max_length - 1))
    ids = np.concatenate([asked.input_ids[:prompt], answered.input_ids[answer:]])[:max_length]
    targets = np.concatenate([np.zeros(prompt, dtype=bool), answered.is_target[answer:]])[:max_length]
    return EncodedRow(ids, targets)


METHOD = Method(encode_feedback, _prepare)
