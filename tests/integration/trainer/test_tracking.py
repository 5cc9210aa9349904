"""A tracker that hangs, beside one that works, and a training that hears of neither."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import training_job_pb2

Trainer = Any  # the fixture's class; conftest modules can't be imported
TENANT = "acme"

TRACKERS = [
    training_job_pb2.TrackerConfig(kind="mlflow"),
    training_job_pb2.TrackerConfig(kind="tensorboard", project="birds"),
]


def record(trainer: Trainer, name: str, kind: str) -> dict[str, Any]:
    """How far a tracker was told of a job; nothing yet: empty."""
    key = f"tracking/{name.removeprefix('trainingJobs/')}/{kind}.json"
    return json.loads(trainer.stores.objects.get(key)) if trainer.stores.objects.size(key) else {}


def numbers(trainer: Trainer, name: str) -> list[tuple[int, dict[str, float]]]:
    """(step, loss and gradient norm) of every metrics event."""
    events = [event for event in trainer.watch(name) if event.WhichOneof("detail") == "metrics"]
    keys = ("loss", "grad_norm")
    return [(event.metrics.step, {key: event.metrics.values[key] for key in keys}) for event in events]


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of one number in TensorBoard's files: records of length, checksum, event, checksum."""
    found = []
    for file in sorted(directory.glob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found += _scalar(data[12 : 12 + length], name)
            data = data[16 + length :]
    return found


def _scalar(event: bytes, name: str) -> list[tuple[int, float]]:
    """By hand, since no environment with pytest here has TensorBoard's protos: the tag's text, then field 2, a float."""
    place = event.find(b"\x0a" + bytes([len(name)]) + name.encode() + b"\x15")
    if place < 0:
        return []
    value = struct.unpack("<f", event[place + len(name) + 3 : place + len(name) + 7])[0]
    return [(event[event.index(b"\x10", 9) + 1], value)]  # steps below 128 are one byte, behind the time


@pytest.mark.slow
def test_a_tracker_that_hangs_changes_nothing(trainer: Trainer, rows: str) -> None:
    """Two trainings and a tracker, each with its own processes: the one place where all of them are real."""
    dataset = trainer.upload(rows)
    plain = trainer.create(trainer.spec(dataset)).name
    expected = numbers(trainer, plain)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        tracker = trainer.start_tracker(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{silent.getsockname()[1]}")
        silent.settimeout(120)
        tracked = trainer.create(trainer.spec(dataset, trackers=TRACKERS)).name
        assert numbers(trainer, tracked) == expected
        job = trainer.get(tracked)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED
        hanging, _ = silent.accept()
        with hanging:
            trainer.wait_until(lambda: record(trainer, tracked, "tensorboard").get("done"), "TensorBoard's files")
            assert not record(trainer, tracked, "mlflow")
            tracker.kill()
    directory = trainer.tensorboard_dir / TENANT / "birds" / tracked.removeprefix("trainingJobs/")
    assert len(scalars(directory, "loss")) == len(expected) == 6
    for (step, value), (asked, values) in zip(scalars(directory, "loss"), expected, strict=True):
        assert (step, value) == (asked, struct.unpack("<f", struct.pack("<f", values["loss"]))[0])
    assert job.result.metrics["train_loss"] == trainer.get(plain).result.metrics["train_loss"]
