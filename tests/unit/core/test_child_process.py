"""The child protocol, with real processes: what is said arrives, and whoever must die does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from martlet_core import child_protocol as protocol
from martlet_core.child import PipeReport, watch_lifeline
from martlet_core.child_process import LINE_CHARACTERS, LINES_PER_STREAM, ChildExit, ChildProcess, LogLines

DEADLINE_SECONDS = 20.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.01)


class Listener:
    """Starts a child on a recipe's source and collects what it says."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._dir = tmp_path
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        self.workdir = tmp_path / "work"
        self.workdir.mkdir()
        self.messages: list[Mapping[str, Any]] = []
        self.lines: list[tuple[str, str]] = []
        self.exited = threading.Event()
        self.child: ChildProcess | None = None

    def start(self, body: str, *, silence_seconds: float = 30.0) -> ChildProcess:
        source = "import os, signal, subprocess, sys, time\nfrom martlet_core.recipe import *\n"
        source += "from martlet_core.errors import *\n\ndef run(config, workdir, report, should_stop):\n"
        (self._dir / "a_recipe.py").write_text(source + textwrap.indent(textwrap.dedent(body), "    "))
        (self.workdir / "job.json").write_text(json.dumps({"config": {"answer": 42}}))
        self.child = ChildProcess(
            "a_recipe:run",
            self.workdir,
            silence_seconds=silence_seconds,
            on_message=self.messages.append,
            on_log_line=lambda source, line: self.lines.append((source, line)),
            on_exit=self.exited.set,
        )
        return self.child

    def run(self, body: str) -> ChildExit:
        exit_ = self.start(body).wait(DEADLINE_SECONDS)
        assert exit_ is not None, "the child did not end"
        return exit_

    def await_line(self, text: str) -> None:
        wait_until(lambda: any(text in line for _, line in self.lines), f"the line {text!r}")

    def close(self) -> None:
        if self.child is not None and self.child.exit() is None:
            self.child.kill()
            self.child.wait(DEADLINE_SECONDS)


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    listener = Listener(tmp_path, monkeypatch)
    yield listener
    listener.close()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_result_and_messages_arrive_in_order(listener: Listener) -> None:
    exit_ = listener.run(
        """
        report.phase("thinking")
        report.metrics(1, 2, {"loss": 0.5}, eta_seconds=3.0)
        path = workdir / "checkpoints" / "step-1"
        path.mkdir(parents=True)
        report.checkpoint(path, 1, {"loss": 0.5}, is_best=True)
        report.log("careful", level="warn")
        report.partial_result({"rows": 7})
        out = workdir / "output" / "model"
        out.mkdir(parents=True)
        return RecipeResult({"answer": config["answer"]}, {"model": OutputArtifact(out, "adapter", {"rank": 8})})
        """
    )
    assert exit_.exit_code == 0
    assert exit_.final == {
        "type": "result",
        "values": {"answer": 42},
        "outputs": {"model": {"path": "output/model", "kind": "adapter", "metadata": {"rank": 8}}},
    }
    assert [message["type"] for message in listener.messages] == [
        protocol.PHASE,
        protocol.METRICS,
        protocol.CHECKPOINT,
        protocol.LOG,
        protocol.PARTIAL_RESULT,
    ]
    assert listener.messages[1]["eta_seconds"] == 3.0
    assert listener.messages[2] == {
        "type": "checkpoint",
        "path": "checkpoints/step-1",
        "step": 1,
        "metrics": {"loss": 0.5},
        "is_best": True,
    }


def test_metrics_that_are_not_finite_are_named_once_and_left_out(listener: Listener) -> None:
    listener.run(
        """
        for step in (1, 2):
            report.metrics(step, 2, {"loss": float("nan"), "speed": 1.0})
        return RecipeResult({})
        """
    )
    logs = [m for m in listener.messages if m["type"] == protocol.LOG]
    assert [m["values"] for m in listener.messages if m["type"] == protocol.METRICS] == [{"speed": 1.0}] * 2
    assert len(logs) == 1
    assert "loss is nan at step 1" in logs[0]["message"]


def test_our_error_keeps_its_class_and_fields(listener: Listener) -> None:
    exit_ = listener.run('raise InvalidArgument.field("spec.steps", "must be even")')
    assert exit_.exit_code == protocol.EXIT_ERROR
    assert exit_.final is not None
    assert exit_.final["error"]["code"] == "INVALID_ARGUMENT"
    assert exit_.final["error"]["violations"] == [{"field": "spec.steps", "description": "must be even"}]


def test_crash_carries_its_traceback(listener: Listener) -> None:
    exit_ = listener.run('raise ZeroDivisionError("oh")')
    assert exit_.exit_code == protocol.EXIT_CRASH
    assert exit_.final is not None
    assert (exit_.final["exception"], exit_.final["message"]) == ("ZeroDivisionError", "oh")
    assert "a_recipe.py" in exit_.final["traceback"]


def test_killed_process_leaves_its_last_words(listener: Listener) -> None:
    exit_ = listener.run('print("last words", file=sys.stderr, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)')
    assert exit_.exit_code == -signal.SIGKILL
    assert exit_.final is None
    assert exit_.stderr_tail == "last words"
    assert "memory" in exit_.describe()


def test_terminate_sets_should_stop(listener: Listener) -> None:
    child = listener.start(
        """
        print("ready")
        while not should_stop():
            time.sleep(0.01)
        raise StopRequested
        """
    )
    listener.await_line("ready")
    child.terminate()
    exit_ = child.wait(DEADLINE_SECONDS)
    assert exit_ is not None
    assert exit_.final == {"type": "stopped"}
    assert exit_.exit_code == protocol.EXIT_STOPPED


def test_terminate_during_the_imports_is_not_lost(listener: Listener, tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'importing')!r}).touch()\n"
        f"while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)\n"
    )
    child = listener.start("raise AssertionError('must not run')")
    child.kill()
    child.wait(DEADLINE_SECONDS)
    source = (tmp_path / "a_recipe.py").read_text()
    (tmp_path / "slow_recipe.py").write_text("import slow_import\n" + source)
    child = ChildProcess(
        "slow_recipe:run",
        listener.workdir,
        silence_seconds=30.0,
        on_message=listener.messages.append,
        on_log_line=lambda *_: None,
        on_exit=lambda: None,
    )
    wait_until((tmp_path / "importing").exists, "the import to begin")
    child.terminate()
    (tmp_path / "go").touch()
    exit_ = child.wait(DEADLINE_SECONDS)
    assert exit_ is not None
    assert exit_.final == {"type": "stopped"}


def test_kill_takes_the_whole_group(listener: Listener) -> None:
    child = listener.start(
        """
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        print("helper", helper.pid)
        time.sleep(1000)
        """
    )
    listener.await_line("helper")
    helper = int(listener.lines[0][1].split()[1])
    child.kill()
    assert child.wait(DEADLINE_SECONDS) is not None
    wait_until(lambda: not is_alive(helper), "the helper to die")


def test_helpers_left_behind_are_killed_when_the_recipe_returns(listener: Listener) -> None:
    exit_ = listener.run(
        """
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        return RecipeResult({"helper": helper.pid})
        """
    )
    assert exit_.final is not None
    wait_until(lambda: not is_alive(exit_.final["values"]["helper"]), "the helper to die")


def test_child_kills_its_group_when_renewals_stop(listener: Listener) -> None:
    child = listener.start("print('ready')\ntime.sleep(1000)", silence_seconds=1.0)
    listener.await_line("ready")
    for _ in range(6):  # longer than the silence, but renewed
        child.renew()
        assert not listener.exited.wait(0.25)
    exit_ = child.wait(DEADLINE_SECONDS)
    assert exit_ is not None
    assert exit_.exit_code == -signal.SIGKILL


def test_child_and_helpers_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    (tmp_path / "a_recipe.py").write_text(
        "import pathlib, subprocess, sys, os, time\n"
        "def run(config, workdir, report, should_stop):\n"
        "    helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
        "    (workdir / 'pids.tmp').write_text(f'{os.getpid()} {helper.pid}')\n"
        "    (workdir / 'pids.tmp').rename(workdir / 'pids')\n"
        "    time.sleep(1000)\n"
    )
    (tmp_path / "job.json").write_text('{"config": {}}')
    supervisor = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time, pathlib\n"
            "from martlet_core.child_process import ChildProcess\n"
            f"c = ChildProcess('a_recipe:run', pathlib.Path({str(tmp_path)!r}), silence_seconds=1000.0,"
            " on_message=print, on_log_line=print, on_exit=lambda: None)\n"
            "time.sleep(1000)\n",
        ],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    wait_until((tmp_path / "pids").exists, "the recipe to start")
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(is_alive(pid) for pid in pids)
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in pids), "the orphans to die")


def test_child_sees_no_credentials(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARTLET_S3_SECRET_KEY", "secret")
    monkeypatch.setenv("MARTLET_REDIS_URL", "redis://secret@host")
    monkeypatch.setenv("MARTLET_INTERNAL_TOKEN", "secret")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    monkeypatch.setenv("MARTLET_CACHE_DIR", "/kept")
    exit_ = listener.run(
        'names = ("MARTLET_", "WANDB_", "MLFLOW_")\n'
        "return RecipeResult({k: v for k, v in os.environ.items() if k.startswith(names)})"
    )
    assert exit_.final is not None
    assert exit_.final["values"] == {"MARTLET_CACHE_DIR": "/kept"}


def test_light_imports_only(listener: Listener) -> None:
    exit_ = listener.run(
        """
        heavy = {"grpc", "celery", "redis", "minio", "pydantic", "torch"} & set(sys.modules)
        return RecipeResult({"heavy": sorted(heavy)})
        """
    )
    assert exit_.final is not None
    assert exit_.final["values"] == {"heavy": []}


def test_checkpoint_outside_of_the_workdir_is_refused(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(ValueError, match="not in the subpath"):
            PipeReport(writing, tmp_path).checkpoint(tmp_path / ".." / "elsewhere", 1, {})
    finally:
        os.close(reading)
        os.close(writing)


def test_lifeline_ends_at_end_of_file() -> None:
    reading, writing = os.pipe()
    dead = threading.Event()
    watcher = threading.Thread(target=watch_lifeline, args=(reading, 1000.0, dead.set))
    watcher.start()
    os.write(writing, b".")
    assert not dead.is_set()
    os.close(writing)
    watcher.join(DEADLINE_SECONDS)
    assert dead.is_set()
    os.close(reading)


def collect(*chunks: bytes) -> list[str]:
    lines: list[str] = []
    log = LogLines(lines.append)
    for chunk in chunks:
        log.feed(chunk)
    log.close()
    return lines


def test_log_lines_are_put_together_from_chunks() -> None:
    assert collect(b"one\ntw", b"o\n\nthr", b"ee") == ["one", "two", "three"]


def test_progress_bars_leave_only_their_last_state() -> None:
    assert collect(b"\r 1%", b"\r 2%", b"\r100%\ndone\r\n") == ["100%", "done"]


def test_line_end_split_between_chunks_keeps_the_line() -> None:
    assert collect(b"windows\r", b"\nline") == ["windows", "line"]


def test_long_lines_are_cut_and_say_so() -> None:
    (line,) = collect(b"x" * (LINE_CHARACTERS + 5) + b"\n")
    assert line == "x" * LINE_CHARACTERS + " ... (5 more characters)"


def test_too_many_lines_are_announced_and_the_tail_is_kept() -> None:
    lines: list[str] = []
    log = LogLines(lines.append)
    log.feed(b"".join(b"%d\n" % i for i in range(LINES_PER_STREAM + 10)))
    assert len(lines) == LINES_PER_STREAM + 1
    assert "not recorded" in lines[-1]
    assert log.tail[-1] == str(LINES_PER_STREAM + 9)
