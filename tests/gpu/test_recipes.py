"""Recipes beside ``sft``, and adapters beside LoRA, on a GPU in bfloat16."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from martlet_trainer.recipes import RECIPES
from martlet_trainer.testing import chat_rows
from martlet_trainer.tuners.kinds import KINDS

pytestmark = pytest.mark.gpu

Train = Callable[..., Any]
_ROLLOUTS = {"rewards": [{"name": "length", "target": 4}], "num_generations": 4, "max_completion_length": 8}
#: Widths of the small models are no multiples of these kinds' defaults.
_OPTIONS = {
    "vera": {"r": 32},
    "vblora": {"vector_length": 16},
    "shira": {"r": 8},
    "oft": {"oft_block_size": 16},
    "road": {"group_size": 16},
}


def rows_of(recipe: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for index, row in enumerate(chat_rows(16)):
        asked, good = row["messages"][:-1], row["messages"][-1]
        if recipe == "pretrain":
            rows.append({"text": f"{asked[-1]['content']} is {good['content']}. " * 3})
        elif recipe == "kto":
            answer = {**good, "content": f"no {good['content']}"} if index % 2 else good
            rows.append({"messages": [*asked, answer], "label": index % 2 == 0})
        elif recipe in ("grpo", "rloo"):
            rows.append({"messages": asked, "solution": good["content"]})
        else:
            rows.append(row if recipe == "sft" else {**row, "rejected_response": f"no {good['content']}"})
    return rows


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_in_bfloat16(train: Train, recipe: str) -> None:
    options = {"recipe_options": _ROLLOUTS} if recipe in ("grpo", "rloo") else {}
    numbers = {"max_steps": 6, "learning_rate": 1e-3, "precision": "bfloat16"}
    result, report = train("small", rows_of(recipe), recipe=recipe, hyperparameters=numbers, **options)
    assert len(report.losses) == 6
    assert all(math.isfinite(loss) for loss in report.losses)
    assert result.outputs["model"].metadata["recipe"] == recipe


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.peft_config])
def test_every_adapter_trains_in_bfloat16(train: Train, kind: str) -> None:
    numbers = {"max_steps": 4, "learning_rate": 1e-3, "precision": "bfloat16"}
    tuner = {"kind": kind, "options": _OPTIONS.get(kind, {}), "lora_rank": None}
    _, report = train("small", chat_rows(16), tuner=tuner, hyperparameters=numbers)
    assert all(math.isfinite(loss) for loss in report.losses)
