"""Recipes beside ``sft``, and adapters beside LoRA, on a GPU in bfloat16."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from martlet_trainer.recipes import RECIPES
from martlet_trainer.testing import chat_rows
from martlet_trainer.testing_cases import RECIPE_OPTIONS, SMALL_OPTIONS, recipe_rows
from martlet_trainer.tuners.kinds import KINDS

pytestmark = pytest.mark.gpu

Train = Callable[..., Any]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_in_bfloat16(train: Train, recipe: str) -> None:
    options = {"recipe_options": RECIPE_OPTIONS.get(recipe, {})}
    numbers = {"max_steps": 6, "learning_rate": 1e-3, "precision": "bfloat16"}
    result, report = train("small", recipe_rows(recipe, 16), recipe=recipe, hyperparameters=numbers, **options)
    assert len(report.losses) == 6
    assert all(math.isfinite(loss) for loss in report.losses)
    assert result.outputs["model"].metadata["recipe"] == recipe


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.peft_config])
def test_every_adapter_trains_in_bfloat16(train: Train, kind: str) -> None:
    numbers = {"max_steps": 4, "learning_rate": 1e-3, "precision": "bfloat16"}
    tuner = {"kind": kind, "options": SMALL_OPTIONS.get(kind, {}), "lora_rank": None}
    _, report = train("small", chat_rows(16), tuner=tuner, hyperparameters=numbers)
    assert all(math.isfinite(loss) for loss in report.losses)
