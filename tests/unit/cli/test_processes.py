"""Supervision with trivial commands: order, readiness, restarts, stopping, and pids that are ours."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from martlet_cli import processes
from martlet_cli.processes import (
    ProcessSpec,
    ProcessState,
    ProcessStatus,
    Supervisor,
    backoff_seconds,
    is_running,
    resident_bytes,
    start_ticks,
    stop_recorded,
)

WAIT_SECONDS = 20.0


class Journal:
    """Remembers each change and lets a test wait for one."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, ProcessState, int]] = []
        self._changed = threading.Condition()

    def __call__(self, status: ProcessStatus) -> None:
        with self._changed:
            self.seen.append((status.name, status.state, status.pid))
            self._changed.notify_all()

    def wait_for(self, name: str, state: ProcessState, times: int = 1) -> int:
        """Wait until a process was in a state so many times; returns its pid then."""

        def hits() -> list[int]:
            return [pid for who, what, pid in self.seen if who == name and what == state]

        with self._changed:
            assert self._changed.wait_for(lambda: len(hits()) >= times, WAIT_SECONDS), (name, state, self.seen)
            return hits()[times - 1]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., tuple[Supervisor, Journal]]]:
    """Starts a supervisor over specs and stops it at the end."""
    started: list[Supervisor] = []

    def start(*specs: ProcessSpec) -> tuple[Supervisor, Journal]:
        journal = Journal()
        supervisor = Supervisor(specs, on_change=journal)
        supervisor.start()
        started.append(supervisor)
        return supervisor, journal

    yield start
    for supervisor in started:
        supervisor.stop()


def spec(tmp_path: Path, name: str, code: str, **options: object) -> ProcessSpec:
    """A Python one-liner as a process."""
    return ProcessSpec(
        name=name,
        argv=(sys.executable, "-c", code),
        environ=dict(os.environ),
        log=tmp_path / f"{name}.log",
        cwd=tmp_path,
        **options,  # type: ignore[arg-type]
    )


SLEEP = "import signal; signal.pause()"


def test_starts_in_order_and_stops_in_reverse(tmp_path: Path, supervise: Callable) -> None:
    ready = tmp_path / "store-is-ready"
    store = spec(tmp_path, "store", SLEEP, ready=ready.exists)
    service = spec(tmp_path, "service", SLEEP, needs=("store",))
    supervisor, journal = supervise(store, service)
    journal.wait_for("store", ProcessState.STARTING)
    states = {state for name, state, _ in journal.seen if name == "service"}
    assert states == {ProcessState.WAITING}, "the service is known, and waits for the store"
    ready.touch()
    journal.wait_for("service", ProcessState.READY)
    supervisor.stop()
    order = [name for name, state, _ in journal.seen if state is ProcessState.STOPPED]
    assert order == ["service", "store"]


def test_restarts_a_process_that_dies(tmp_path: Path, supervise: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "FIRST_BACKOFF_SECONDS", 0.01)
    supervisor, journal = supervise(spec(tmp_path, "server", SLEEP))
    first = journal.wait_for("server", ProcessState.READY)
    os.kill(first, signal.SIGKILL)
    second = journal.wait_for("server", ProcessState.READY, times=2)
    assert second != first
    status = supervisor.processes["server"].status
    assert (status.restarts, status.last_exit_code) == (1, -signal.SIGKILL)


def test_a_process_that_cannot_start_is_tried_again(tmp_path: Path, supervise: Callable) -> None:
    missing = ProcessSpec("missing", (str(tmp_path / "nothing"),), {}, tmp_path / "missing.log", tmp_path)
    _, journal = supervise(missing)
    journal.wait_for("missing", ProcessState.RESTARTING)
    assert "can't start" in missing.log.read_text()


def test_once_is_ready_when_it_has_ended_well(tmp_path: Path, supervise: Callable) -> None:
    once = spec(tmp_path, "prepare", "print('prepared')", once=True)
    after = spec(tmp_path, "server", SLEEP, needs=("prepare",))
    _, journal = supervise(once, after)
    journal.wait_for("server", ProcessState.READY)
    assert once.log.read_text() == "prepared\n"
    states = [(name, state) for name, state, _ in journal.seen]
    assert states.index(("prepare", ProcessState.DONE)) < states.index(("server", ProcessState.STARTING))


def test_what_ignores_sigterm_is_killed_with_its_children(tmp_path: Path, supervise: Callable) -> None:
    code = (
        "import os, signal, subprocess, sys;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']);"
        "open('child', 'w').write(str(child.pid));"
        "os.rename('child', 'child.pid');"
        "signal.pause()"
    )
    written = tmp_path / "child.pid"
    supervisor, journal = supervise(spec(tmp_path, "stubborn", code, ready=written.exists, stop_seconds=0.2))
    pid = journal.wait_for("stubborn", ProcessState.READY)
    child = int(written.read_text())
    ticks, child_ticks = start_ticks(pid), start_ticks(child)
    assert child_ticks
    supervisor.stop()
    assert not is_running(pid, ticks)
    deadline = time.monotonic() + WAIT_SECONDS
    while is_running(child, child_ticks):  # SIGKILL was sent; the kernel takes a moment
        assert time.monotonic() < deadline
        os.sched_yield()


def test_stop_recorded_leaves_a_stranger_alone() -> None:
    own = os.getpid()
    assert is_running(own, start_ticks(own))
    assert not stop_recorded(own, start_ticks(own) + 1, 0.1), "another start time means another process"
    assert not stop_recorded(0, 0, 0.1)


def test_backoff_grows_to_its_limit() -> None:
    assert [backoff_seconds(n) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert backoff_seconds(50) == processes.LONGEST_BACKOFF_SECONDS


def test_resident_bytes_counts_descendants_in_sessions_of_their_own(tmp_path: Path, supervise: Callable) -> None:
    up = tmp_path / "up"
    # The child ends when its parent does: the pipe between them closes.
    child = "import sys; block = b'x' * 50_000_000; open('up', 'w').close(); sys.stdin.read()"
    code = (
        "import subprocess, sys, signal;"
        f"kept = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE, start_new_session=True);"
        "signal.pause()"
    )
    _, journal = supervise(spec(tmp_path, "server", code, ready=up.exists))
    pid = journal.wait_for("server", ProcessState.READY)
    assert 55e6 < resident_bytes(pid) < 1e9


def test_gives_up_waiting_for_what_keeps_dying(
    tmp_path: Path, supervise: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "FIRST_BACKOFF_SECONDS", 0.01)
    supervisor, _ = supervise(spec(tmp_path, "broken", "raise SystemExit(3)", ready=lambda: False))
    assert supervisor.wait_ready(["broken"], WAIT_SECONDS) == ["broken"]
    assert supervisor.processes["broken"].status.restarts >= processes.HOPELESS_RESTARTS
    assert supervisor.processes["broken"].status.last_exit_code == 3
