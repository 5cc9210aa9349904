"""What each tool has of a run, read back from where it keeps it; told again, it is the same."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from martlet_trainer.tracking.run import Point, RunEnd, flat
from martlet_trainer.tracking.testing import scalars, tensorboard_events, texts, tracked
from martlet_trainer.tracking.tools import tensorboard

POINTS = [
    Point(1, 1, 1000.0, {"loss": 1.0}),
    Point(2, 2, 1001.0, {"loss": 0.5}),
    Point(3, 2, 1001.5, {"valid_loss": 0.75}),
]
END = RunEnd(
    "SUCCEEDED", 1002.0, {"seed": 42, "tuner": {"kind": "lora"}}, {"metrics": {"train_loss": 0.5}, "device": "cpu"}
)


def test_names_are_joined_by_dots() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": [{"e": 2}]}, "f": 3}) == {"a.b.c": 1, "a.d": [{"e": 2}], "f": 3}


def test_tensorboard(tmp_path: Path) -> None:
    run = tensorboard.open_run(tracked(tmp_path, name="first try", tags=("a",)))
    run.log(POINTS)
    run.close(END)
    directory = tmp_path / "acme" / "birds" / "first try-job1"
    assert scalars(directory) == [("loss", 1, 1.0), ("loss", 2, 0.5), ("valid_loss", 2, 0.75)]
    assert [event.wall_time for event in tensorboard_events(directory) if event.summary.value][1:4] == [
        1000.0,
        1001.0,
        1001.5,
    ]
    written = {tag: json.loads(text) for tag, text in texts(directory).items()}
    assert written["config"]["hyperparameters"] == {"max_steps": 4}
    assert written["resolved_config"] == END.config
    assert written["result"] == {"state": "SUCCEEDED", **END.summary}


def test_tensorboard_hides_what_is_told_again(tmp_path: Path) -> None:
    """The process died after it wrote step 2 and before that was noted: the next one begins behind step 1."""
    first = tensorboard.open_run(tracked(tmp_path))
    first.log(POINTS)
    first.leave()
    again = tensorboard.open_run(tracked(tmp_path, tool_run=first.tool_run, said_until=1))
    again.log(POINTS[1:])
    again.close(END)
    starts = [event.step for event in tensorboard_events(tmp_path) if event.HasField("session_log")]
    assert starts == [0, 2]
    assert list(texts(tmp_path)) == ["config", "resolved_config", "result"]


def tell(kind: str, cwd: Path, environ: dict[str, str], lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A tool's own process, told some lines; its answers."""
    done = subprocess.run(
        [sys.executable, "-m", "martlet_trainer.tracking.child", kind],
        input="".join(json.dumps(line) + "\n" for line in lines),
        env={**os.environ, **environ},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert not any("error" in answer for answer in answers), done.stderr
    return answers


def opening(directory: Path, **changes: Any) -> dict[str, Any]:
    return {"open": asdict(tracked(directory, **changes))}


LOG = {"log": [asdict(point) for point in POINTS]}
CLOSE = {"close": asdict(END)}


@pytest.mark.slow
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a database of its own: one run, whatever was told twice, and by a process that didn't know the run's id. MLflow makes
    its tables by all its migrations, which takes seconds; only its databases know a metric told again."""
    address = f"sqlite:///{tmp_path}/mlflow.db"
    lines = [opening(tmp_path, tags=("a", "b")), LOG, {"leave": None}]
    first, _, _ = tell("mlflow", tmp_path, {"MLFLOW_TRACKING_URI": address}, lines)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    from martlet_trainer.tracking.tools import mlflow

    again = mlflow.open_run(tracked(tmp_path))
    again.log(POINTS)
    again.close(END)
    assert first == {"tool_run": again.tool_run, "known": None}
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        tables = {name: database.execute(query).fetchall() for name, query in MLFLOW_TABLES.items()}
    assert tables["runs"] == [(again.tool_run, "job1", "FINISHED", 1002000, "birds")]
    assert tables["metrics"] == [
        ("loss", 1, 1.0, 1000000),
        ("loss", 2, 0.5, 1001000),
        ("result.metrics.train_loss", 0, 0.5, 1002000),
        ("valid_loss", 2, 0.75, 1001500),
    ]
    assert dict(tables["params"]) == {
        "base_model": "tiny",
        "hyperparameters.max_steps": "4",
        "resolved.seed": "42",
        "resolved.tuner.kind": "lora",
    }
    assert {name: value for name, value in tables["tags"] if not name.startswith("mlflow.")} == {
        "martlet.job": "job1",
        "martlet.tenant": "acme",
        "martlet.tags": "a, b",
        "martlet.state": "SUCCEEDED",
        "result.device": "cpu",
    }


MLFLOW_TABLES = {
    "runs": "select run_uuid, r.name, status, end_time, e.name from runs r join experiments e using (experiment_id)",
    "metrics": "select key, step, value, timestamp from metrics order by key, step",
    "params": "select key, value from params",
    "tags": "select key, value from tags",
}


def test_mlflow_without_an_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own default is a database in the working directory, which nobody would find."""
    from martlet_trainer.tracking.tools import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI isn't set"):
        mlflow.open_run(tracked(tmp_path))


def test_wandb_offline(tmp_path: Path) -> None:
    opened, *_ = tell("wandb", tmp_path, {"WANDB_MODE": "offline"}, [opening(tmp_path, tags=("a",)), LOG, CLOSE])
    assert opened == {"tool_run": "job1", "known": None}
    [file] = tmp_path.rglob("run-job1.wandb")
    records = list(wandb_records(file))
    [run] = [record.run for record in records if record.HasField("run")]
    assert (run.run_id, run.project, run.display_name, list(run.tags)) == ("job1", "birds", "job1", ["a"])
    config = {
        u.key: json.loads(u.value_json) for r in records for u in [*r.run.config.update, *r.config.update] if u.key
    }
    assert (config["base_model"], config["resolved"]) == ("tiny", END.config)
    history = [{_name(item): json.loads(item.value_json) for item in r.history.item} for r in records if r.history.item]
    shown = [{name: row[name] for name in ("_step", "step", "loss", "valid_loss") if name in row} for row in history]
    assert shown == [
        {"_step": 1, "step": 1, "loss": 1.0},
        {"_step": 2, "step": 2, "loss": 0.5},
        {"_step": 3, "step": 2, "valid_loss": 0.75},
    ]
    summary = {_name(item): json.loads(item.value_json) for r in records for item in r.summary.update}
    assert (summary["state"], summary["result"]) == ("SUCCEEDED", END.summary)
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


def _name(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def wandb_records(file: Path) -> Iterator[Any]:
    """Records of a ``.wandb`` file: LevelDB's log format (blocks of 32 KiB; checksum, length, type), behind 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(whole)
            whole = b""
