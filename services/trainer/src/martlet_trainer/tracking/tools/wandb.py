"""Weights & Biases: a run with the job's id, at ``WANDB_BASE_URL`` with ``WANDB_API_KEY``; ``WANDB_MODE=offline`` writes files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import wandb

from martlet_trainer.tracking.run import Point, RunEnd, TrackedRun

_STEP = "step"
_EXIT_CODES = {"SUCCEEDED": 0, "FAILED": 1, "CANCELLED": 255}
#: Nothing of the tracker's own machine belongs into the run: no console, code, packages, host or load.
_QUIET = {
    "silent": True,
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


def open_run(run: TrackedRun) -> WandbRun:
    """See ``WandbRun``."""
    return WandbRun(run)


class WandbRun:
    """See ``Tracker``. W&B's own step is the number of the point, so that W&B drops a point told again (its steps only rise), and
    keeps two points of one training step; the axis of its plots is the training's ``step``."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = wandb.init(
            project=run.project,
            entity=run.entity or None,
            name=run.name,
            id=run.job_id,
            resume="allow",
            tags=list(run.tags),
            config=dict(run.config),
            settings=wandb.Settings(**_QUIET),
        )
        self.tool_run = run.job_id
        self._offline = self._run.settings.mode == "offline"
        # The next step of a run that the server knows is one behind its last.
        self.known: int | None = None if self._offline else max(0, self._run.starting_step - 1)
        self._run.define_metric(_STEP, hidden=True)
        self._run.define_metric("*", step_metric=_STEP)

    def log(self, points: Sequence[Point]) -> None:
        """See ``Tracker``. W&B sends them from a process of its own; what it lost, ``known`` shows the next time."""
        for point in points:
            self._run.log({_STEP: point.step, **point.values}, step=point.number)

    def close(self, end: RunEnd) -> None:
        """See ``Tracker``."""
        self._run.config.update({"resolved": end.config}, allow_val_change=True)
        self._run.summary.update({"state": end.state, "result": end.summary})
        self._finish(_EXIT_CODES[end.state])

    def leave(self) -> None:
        """See ``Tracker``."""
        self._finish(0)

    def _finish(self, exit_code: int) -> None:
        directory = Path(self._run.dir).parent
        self._run.finish(exit_code=exit_code)
        if not self._offline:  # the server has it now
            shutil.rmtree(directory, ignore_errors=True)
