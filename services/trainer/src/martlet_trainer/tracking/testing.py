"""For tests: a training's life in a job store, and TensorBoard's files read back."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from martlet_core.jobs import Claim, Job, JobEvent, JobState
from martlet_core.stores import Stores

from martlet_trainer.tracking.run import TrackedRun
from martlet_trainer.tracking.tools.tensorboard import Event


class Training:
    """A job that says what a worker would."""

    def __init__(self, stores: Stores, job_id: str, trackers: list[dict[str, Any]]) -> None:
        self._jobs = stores.jobs
        self.id = job_id
        spec = {"base_model": "tiny", "hyperparameters": {"max_steps": 4}, "trackers": trackers}
        stores.jobs.create(Job(job_id, "trainer", "training", "acme", spec, "trainer"))
        self._claim: Claim | None = None

    def attempt(self) -> None:
        """A worker takes it."""
        self._claim = self._jobs.claim(self.id, "worker", 60)

    def lose(self) -> None:
        """Its worker gives it back."""
        assert self._claim is not None
        self._jobs.finish(self.id, self._claim.token, JobState.QUEUED)

    def step(self, step: int, **values: float) -> None:
        """Report numbers."""
        self._jobs.append_event(self.id, JobEvent("metrics", "", data={"step": step, "values": values}))

    def finish(self, state: JobState = JobState.SUCCEEDED) -> None:
        """End it."""
        assert self._claim is not None
        failed = {"reason": "DIVERGED", "message": "no loss"} if state is JobState.FAILED else None
        result = {
            "metrics": {"train_loss": 0.5},
            "training_data": {"rows_used": 3, "issues": [{"message": "a row's own words"}]},
            "resolved_config": {"seed": 42},
        }
        self._jobs.finish(self.id, self._claim.token, state, result=result, error=failed)


def tracked(directory: Path, **changes: Any) -> TrackedRun:
    """A run as a tool is given it."""
    values: dict[str, Any] = {"job_id": "job1", "tenant": "acme", "project": "birds", "name": "job1"}
    config = {"base_model": "tiny", "hyperparameters": {"max_steps": 4}}
    return TrackedRun(**{**values, "config": config, "directory": str(directory), **changes})


def tensorboard_events(directory: Path) -> Iterator[Any]:
    """Events of all files below a directory, oldest file first."""
    for file in sorted(directory.rglob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def scalars(directory: Path) -> list[tuple[str, int, float]]:
    """(name, step, value) of every number below a directory."""
    return [
        (value.tag, event.step, round(value.simple_value, 6))
        for event in tensorboard_events(directory)
        for value in event.summary.value
        if value.WhichOneof("value") == "simple_value"
    ]


def texts(directory: Path) -> Mapping[str, str]:
    """Texts below a directory by tag."""
    return {
        value.tag.removesuffix("/text_summary"): value.tensor.string_val[0].decode()
        for event in tensorboard_events(directory)
        for value in event.summary.value
        if value.WhichOneof("value") == "tensor"
    }
