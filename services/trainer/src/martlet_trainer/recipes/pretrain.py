"""Going on with pretraining: the model learns to predict every token of plain texts.

A text longer than ``max_length`` is cut into pieces, each a row of its own: nothing of it is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from martlet_core.recipe import RecipeResult, Report, ShouldStop

from martlet_trainer.data.examples import encode_text
from martlet_trainer.recipes.next_token import next_token_lesson
from martlet_trainer.recipes.training import Method, run_method, train_by

METHOD = Method("martlet_trainer.recipes.pretrain:train", encode_text, next_token_lesson)


def run(values: Mapping[str, Any], workdir: Path, report: Report, should_stop: ShouldStop) -> RecipeResult:
    """See ``run_method``."""
    return run_method(METHOD, values, workdir, report, should_stop)


def train(values: Mapping[str, Any], workdir: Path, report: Report, should_stop: ShouldStop) -> RecipeResult:
    """One process of the training."""
    return train_by(METHOD, values, workdir, report, should_stop)
