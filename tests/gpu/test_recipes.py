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


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.peft_config or kind.unmergeable])
def test_every_adapter_trains_in_bfloat16(train: Train, kind: str) -> None:
    numbers = {"max_steps": 4, "learning_rate": 1e-3, "precision": "bfloat16"}
    tuner = {"kind": kind, "options": SMALL_OPTIONS.get(kind, {}), "lora_rank": None}
    _, report = train("small", chat_rows(16), tuner=tuner, hyperparameters=numbers)
    assert all(math.isfinite(loss) for loss in report.losses)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["lora", "full", "adapter"])
def test_ligers_kernels_change_no_number(machine: Any, train: Train, kind: str, checkpointing: bool) -> None:
    """Without them first: some stay with the architecture for the rest of the process."""
    if machine.device == "cpu":
        pytest.skip("Liger's kernels need a GPU")
    pytest.importorskip("liger_kernel", reason="this environment has no liger-kernel")
    numbers = {"max_steps": 4, "learning_rate": 1e-3, "precision": "float32", "gradient_checkpointing": checkpointing}
    tuner = {"kind": kind, "lora_rank": 8 if kind == "lora" else None}
    losses = []
    for wanted in (False, True):
        asked = {**numbers, "use_liger_kernel": wanted}
        losses.append(train("small", chat_rows(16), tuner=tuner, hyperparameters=asked)[1].losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
