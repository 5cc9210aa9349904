"""A tiny model, and whole jobs on it."""

from __future__ import annotations

import json
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


class _Speaker:
    """Takes what a step says in this process."""

    def __init__(self, report: testing.Recorder) -> None:
        self._report = report

    def log(self, message: str) -> None:
        self._report.log(message)

    def progress(self, step: int, total: int) -> None:
        self._report.metrics(step, total, {})


@pytest.fixture
def run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[RecipeResult, testing.Recorder, Path]]:
    """Runs a whole job on the tiny model: ``run("bnb-nf4", options={...}, inputs={...})``.

    Its steps run in this process, which has imported everything already, unless ``processes`` is true.
    """

    def in_process(name: str, arguments: Any, report: testing.Recorder, *_: Any, **__: Any) -> Any:
        from martlet_quantizer import step

        return json.loads(json.dumps(step.STEPS[name](arguments, _Speaker(report))))

    def run_job(
        method: str,
        *,
        model: Path | None = None,
        inputs: dict[str, Path] | None = None,
        processes: bool = False,
        **spec: Any,
    ) -> Any:
        if not processes:
            monkeypatch.setattr(quantize, "run_step", in_process)
        workdir = testing.lay_out(tmp_path / "job", model or tiny_model, **(inputs or {}))
        report = testing.Recorder()
        config = {"model": "tiny", "method": method, "sample_prompts": ["Hello"], **spec}
        return quantize.run(config, workdir, report, lambda: False), report, workdir

    return run_job
