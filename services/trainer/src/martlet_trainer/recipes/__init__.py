"""Training algorithms, one file a recipe: ``run(config, workdir, report, should_stop) -> RecipeResult``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from martlet_core.errors import InvalidArgument
from martlet_core.recipe import RecipeResult, Report, ShouldStop

#: A recipe: takes the job's spec as plain values.
Recipe = Callable[[Mapping[str, Any], Path, Report, ShouldStop], RecipeResult]

#: Recipe name -> module; its options are in ``config.RECIPE_OPTIONS``.
RECIPES: Mapping[str, str] = {"sft": "martlet_trainer.recipes.sft"}


def load_recipe(name: str) -> Recipe:
    """The recipe of a name; its libraries are imported now.

    Raises:
        InvalidArgument: there is none.
    """
    if name not in RECIPES:
        raise InvalidArgument.field("spec.recipe", f"is {name!r}; must be one of: {', '.join(RECIPES)}")
    return importlib.import_module(RECIPES[name]).run
