"""A recipe for drills: a counter whose every step depends on all steps before, so that a lost or doubled step shows.

Config: ``steps``, ``step_seconds``, ``checkpoint_every`` (steps), and how to misbehave: ``raise_at``, ``refuse_at``,
``report_at``, ``kill_at`` (a step; only in the attempts that ``in_attempts`` lists) and ``ignore_stop``. ``trace`` names a file that
gets a line a step. ``publish_at`` lists steps at which it publishes a model for a while, and waits until that is done; ``wait_at`` is a step
behind which it goes on when it is asked to stop.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from martlet_core.child_protocol import answer_file
from martlet_core.errors import InvalidArgument
from martlet_core.gpus import MEMORY_SHARE, VISIBLE
from martlet_core.recipe import FailedWithResult, OutputArtifact, PublishingReport, RecipeResult, Report, StopRequested

_MULTIPLIER, _INCREMENT, _MODULUS = 6364136223846793005, 1442695040888963407, 2**64


def next_value(value: int) -> int:
    """The step function."""
    return (value * _MULTIPLIER + _INCREMENT) % _MODULUS


def value_after(steps: int) -> int:
    """What an unbroken run ends with."""
    value = 1
    for _ in range(steps):
        value = next_value(value)
    return value


def run(config: dict[str, Any], workdir: Path, report: Report, should_stop: Callable[[], bool]) -> RecipeResult:
    """Count, with a checkpoint now and then."""
    attempt = json.loads((workdir / "job.json").read_text())["attempt"]
    step, value = _resume(workdir)
    report.phase("counting")
    gpus = {"visible_gpus": os.environ.get(VISIBLE), "gpu_memory_share": os.environ.get(MEMORY_SHARE)}
    report.partial_result({"started_at": step, **gpus})
    print(f"starting behind step {step}")
    last_saved = step
    while step < config["steps"]:
        if should_stop() and not config.get("ignore_stop"):
            if step > last_saved:
                _save(workdir, report, step, value)
            raise StopRequested
        time.sleep(config.get("step_seconds", 0.0))
        step, value = step + 1, next_value(value)
        _trace(config, attempt, step)
        report.metrics(step, config["steps"], {"loss": value / _MODULUS})
        if step % config.get("checkpoint_every", 10) == 0:
            _save(workdir, report, step, value)
            last_saved = step
        if step in config.get("publish_at", ()):
            _publish(workdir, report, step)
        while step == config.get("wait_at") and not should_stop():
            time.sleep(0.01)
        if attempt in config.get("in_attempts", [1]):
            _misbehave(config, step, workdir)
    output = workdir / "output" / "model"
    output.mkdir(parents=True, exist_ok=True)
    (output / "value.json").write_text(json.dumps({"value": value}))
    return RecipeResult({"value": str(value)}, {"model": OutputArtifact(output, "adapter", {"steps": step})})


def _resume(workdir: Path) -> tuple[int, int]:
    path = workdir / "resume" / "state.json"
    if not path.exists():
        return 0, 1
    state = json.loads(path.read_text())
    return state["step"], state["value"]


def _save(workdir: Path, report: Report, step: int, value: int) -> None:
    path = workdir / "checkpoints" / f"step-{step}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "state.json").write_text(json.dumps({"step": step, "value": value}))
    report.checkpoint(path, step, {"loss": value / _MODULUS})


def _publish(workdir: Path, report: Report, step: int) -> None:
    path = workdir / f"published-{step}"
    path.mkdir()
    (path / "state.json").write_text(json.dumps({"step": step}))
    assert isinstance(report, PublishingReport)
    report.temporary_model(path, step)
    while not answer_file(workdir, step).exists():
        time.sleep(0.01)
    report.log(f"published: {answer_file(workdir, step).read_text()}")


def _trace(config: dict[str, Any], attempt: int, step: int) -> None:
    if "trace" in config:
        with open(config["trace"], "a") as file:
            file.write(f"{attempt} {step}\n")


def _misbehave(config: dict[str, Any], step: int, workdir: Path) -> None:
    if step == config.get("raise_at"):
        raise RuntimeError("the toy broke")
    if step == config.get("refuse_at"):
        raise InvalidArgument.field("spec.steps", "the toy doesn't like this number")
    if step == config.get("report_at"):
        output = workdir / "output" / "report"
        output.mkdir(parents=True)
        (output / "report.json").write_text(json.dumps({"step": step}))
        error = InvalidArgument.field("spec.steps", "the toy says why in its report")
        raise FailedWithResult(error, RecipeResult({"value": "none"}, {"report": OutputArtifact(output, "report")}))
    if step == config.get("kill_at"):
        print("about to be killed", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
