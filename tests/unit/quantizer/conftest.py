"""A tiny model, and whole jobs on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from martlet_core.recipe import RecipeResult
from martlet_quantizer import quantize, testing

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama, hidden size 64: group sizes of 128 don't divide it."""
    return testing.save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Callable[..., tuple[RecipeResult, testing.Recorder, Path]]:
    """Runs a whole job on the tiny model: ``run("bnb-nf4", options={...}, inputs={...})``."""

    def run_job(method: str, *, model: Path | None = None, inputs: dict[str, Path] | None = None, **spec: Any) -> Any:
        workdir = testing.lay_out(tmp_path / "job", model or tiny_model, **(inputs or {}))
        report = testing.Recorder()
        config = {"model": "tiny", "method": method, "sample_prompts": ["Hello"], **spec}
        return quantize.run(config, workdir, report, lambda: False), report, workdir

    return run_job
