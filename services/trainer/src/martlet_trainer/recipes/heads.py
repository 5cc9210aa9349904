"""What the recipes share whose models end in a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from martlet_trainer.recipes.method import HeadInputs, Lesson, MethodInputs
from martlet_trainer.training.head_batches import HeadObjective, Score, head_computation
from martlet_trainer.training.heads import Head
from martlet_trainer.training.neftune import with_noise
from martlet_trainer.tuners.fused_lora import fuse

#: transformers' name of the one output of a model that gives a score.
_SCORE_LABELS = ("LABEL_0",)


def head_lesson(
    inputs: MethodInputs, objective: HeadObjective, measures: Sequence[str], score: Score | None = None
) -> Lesson:
    """A training on ``HeadExample``s; the other arguments are those of ``head_computation``."""
    pad: Any = inputs.tokenizer.pad_token_id
    fuse(inputs.tuner.model)
    computation = head_computation(objective, pad, measures, score)
    computation = with_noise(computation, inputs.tuner.model, inputs.config.hyperparameters.neftune_noise_alpha)
    return Lesson(computation, inputs.examples, inputs.validation)


def score_head(inputs: HeadInputs) -> Head:
    """One number a text, as reward models and rerankers give it."""
    return Head("sequence_classification", _SCORE_LABELS, "regression")
