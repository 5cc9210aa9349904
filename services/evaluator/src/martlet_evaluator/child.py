"""What runs in the child process: brings in-process targets' models to where they are looked for, then evaluates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from martlet_core.recipe import RecipeResult, Report
from martlet_inputs.base_models.locate import link_base_model


def run_evaluation(
    config: Mapping[str, Any], workdir: Path, report: Report, should_stop: Callable[[], bool]
) -> RecipeResult:
    """Carry one evaluation out."""
    for name, where in (config.get("base_models") or {}).items():
        link_base_model(where, workdir, report, should_stop, name=name)
    from martlet_evaluator.evaluate import run

    return run(config, workdir, report, should_stop)
