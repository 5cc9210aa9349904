"""What runs in the child process: brings the model to the method, then quantizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from martlet_core.recipe import RecipeResult, Report
from martlet_inputs.base_models.locate import link_base_model

from martlet_quantizer.quantize import run


def run_quantization(
    config: Mapping[str, Any], workdir: Path, report: Report, should_stop: Callable[[], bool]
) -> RecipeResult:
    """Quantize as the spec says."""
    link_base_model(config["base_model"], workdir, report, should_stop)
    beside = {name: config.get(name) for name in ("engine_pythons", "task")}
    return run({**config["spec"], **beside}, workdir, report, should_stop)
