"""Keep a set of processes running: started in order of their needs, restarted with backoff, stopped by pid."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO

#: Seconds between two looks at a process.
LOOK_SECONDS = 0.1
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
#: A process that ran this long counts as healthy again: its next crash starts at the first backoff.
SETTLED_SECONDS = 60.0

#: A process that died this often before it was ever ready won't come up by itself.
HOPELESS_RESTARTS = 4

Probe = Callable[[], bool]


class ProcessState(str, Enum):
    """Where a supervised process is in its life."""

    WAITING = "waiting"  # for the processes it needs
    STARTING = "starting"  # runs, isn't ready
    READY = "ready"
    DONE = "done"  # a process that runs once has ended well
    RESTARTING = "restarting"  # ended by itself; its backoff runs
    STOPPED = "stopped"


@dataclass(frozen=True)
class ProcessSpec:
    """A process to keep running.

    Attributes:
        name: unique; also the name of its log file.
        argv: what to run.
        environ: its whole environment.
        log: file that stdout and stderr are appended to.
        cwd: working directory.
        ready: says whether it serves; may block a second or two, must not raise. None: it counts as ready once it has
            run for ``settle_seconds``.
        needs: processes that must be ready before it starts.
        port: main port, for people to see; 0 when it has none.
        once: it ends by itself; exit code 0 makes it ready for good, another one is a crash.
        stop_seconds: grace between SIGTERM and SIGKILL.
    """

    name: str
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    log: Path
    cwd: Path
    ready: Probe | None = None
    needs: tuple[str, ...] = ()
    port: int = 0
    once: bool = False
    settle_seconds: float = 0.0
    stop_seconds: float = 10.0


@dataclass
class ProcessStatus:
    """What is known about a supervised process; ``start_ticks`` tells it from a later process of the same pid."""

    name: str
    state: ProcessState = ProcessState.WAITING
    pid: int = 0
    start_ticks: int = 0
    port: int = 0
    started_at: float = 0.0
    ready_seconds: float | None = None
    restarts: int = 0
    last_exit_code: int | None = None


class SupervisedProcess:
    """One process and the thread that watches it."""

    def __init__(self, spec: ProcessSpec, on_change: Callable[[ProcessStatus], None]) -> None:
        self.spec = spec
        self.status = ProcessStatus(spec.name, port=spec.port)
        self.ready = threading.Event()
        self._on_change = on_change
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self, needed: Iterable[SupervisedProcess]) -> None:
        """Begin to watch in the background; the process itself starts when ``needed`` are ready."""
        self._change(ProcessState.WAITING)  # known from now on, so that who waits for all waits for it too
        self._thread = threading.Thread(target=self._watch, args=(list(needed),), name=f"watch-{self.spec.name}")
        self._thread.start()

    def stop(self) -> None:
        """SIGTERM, grace, SIGKILL; returns when the process is gone and its thread has ended."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, needed: list[SupervisedProcess]) -> None:
        while not all(process.ready.is_set() for process in needed):
            if self._stop.wait(LOOK_SECONDS):
                self._change(ProcessState.STOPPED)
                return
        crashes = 0
        while not self._stop.is_set():
            began = time.monotonic()
            self._run_once()
            self.ready.clear()
            if self._stop.is_set():
                break
            if self.spec.once and self.status.last_exit_code == 0:
                self.ready.set()
                self._change(ProcessState.DONE)
                self._stop.wait()
                break
            crashes = 1 if time.monotonic() - began > SETTLED_SECONDS else crashes + 1
            self.status.restarts += 1
            self._change(ProcessState.RESTARTING)
            self._stop.wait(backoff_seconds(crashes))
        self._change(ProcessState.STOPPED)

    def _run_once(self) -> None:
        """Start the process and watch it until it ends, by itself or because it is told to."""
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.spec.log, "ab") as log:
            try:
                popen = self._spawn(log)
            except OSError as error:
                log.write(f"can't start {self.spec.argv[0]}: {error}\n".encode())
                self.status.last_exit_code = 127
                return
        began = time.monotonic()
        while popen.poll() is None:
            if self._stop.is_set():
                terminate(popen, self.spec.stop_seconds)
                break
            ran = time.monotonic() - began
            if not self.ready.is_set() and self._answers(ran) and popen.poll() is None:
                self.status.ready_seconds = time.monotonic() - began
                self.ready.set()
                self._change(ProcessState.READY)
            self._stop.wait(LOOK_SECONDS)
        kill_group(popen.pid)  # what it left behind
        self.status.last_exit_code = popen.wait()
        self.status.pid = 0

    def _answers(self, ran_seconds: float) -> bool:
        if self.spec.once:
            return False
        return self.spec.ready() if self.spec.ready else ran_seconds >= self.spec.settle_seconds

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        # A session of its own: a Ctrl-C at the terminal reaches the launcher only, which then stops all in order.
        popen = subprocess.Popen(
            list(self.spec.argv),
            env=dict(self.spec.environ),
            cwd=self.spec.cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self._popen = popen
        self.status.pid = popen.pid
        self.status.start_ticks = start_ticks(popen.pid)
        self.status.started_at = time.time()
        self._change(ProcessState.STARTING)
        return popen

    def _change(self, state: ProcessState) -> None:
        self.status.state = state
        self._on_change(self.status)


@dataclass
class Supervisor:
    """A set of processes that are kept running.

    Attributes:
        specs: the processes, those that others need first.
        on_change: told of each change of a status, from several threads, one at a time.
    """

    specs: tuple[ProcessSpec, ...]
    on_change: Callable[[ProcessStatus], None] = lambda status: None
    processes: dict[str, SupervisedProcess] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def start(self, names: Iterable[str] | None = None) -> None:
        """Start all (or the named ones) in the background, each as soon as what it needs is ready.

        Args:
            names: processes whose needs are among them or have been started before.
        """
        chosen = None if names is None else set(names)
        new = [s for s in self.specs if s.name not in self.processes and (chosen is None or s.name in chosen)]
        for spec in new:
            self.processes[spec.name] = SupervisedProcess(spec, self._changed)
        for spec in new:
            self.processes[spec.name].start(self.processes[name] for name in spec.needs)

    def stop(self) -> None:
        """Stop all: first those that nothing needs, all of one rank at once."""
        waves: dict[int, list[SupervisedProcess]] = {}
        for process in self.processes.values():
            waves.setdefault(self._rank(process.spec), []).append(process)
        for rank in sorted(waves, reverse=True):
            stoppers = [threading.Thread(target=process.stop) for process in waves[rank]]
            for thread in stoppers:
                thread.start()
            for thread in stoppers:
                thread.join()

    def wait_ready(
        self, names: Iterable[str], deadline_seconds: float, stop: threading.Event | None = None
    ) -> list[str]:
        """Wait until the named processes are ready; returns those that aren't by the deadline, or that keep dying."""
        end = time.monotonic() + deadline_seconds
        late = list(names)
        while late and time.monotonic() < end and not (stop and stop.is_set()):
            late = [name for name in late if not self.processes[name].ready.wait(LOOK_SECONDS)]
            dying = [name for name in late if self.processes[name].status.restarts >= HOPELESS_RESTARTS]
            if dying:
                return dying
        return late

    def statuses(self) -> list[ProcessStatus]:
        """The status of each process in the order of the specs."""
        return [process.status for process in self.processes.values()]

    def _rank(self, spec: ProcessSpec) -> int:
        return 1 + max((self._rank(self.processes[name].spec) for name in spec.needs), default=0)

    def _changed(self, status: ProcessStatus) -> None:
        with self._lock:
            self.on_change(status)


def backoff_seconds(crashes: int) -> float:
    """Seconds to wait before the start that follows the given number of crashes in a row (from 1)."""
    return min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (crashes - 1))


def terminate(popen: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """SIGTERM, then SIGKILL to its group after the grace."""
    popen.terminate()
    try:
        popen.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        kill_group(popen.pid)
        popen.wait()


def kill_group(pid: int) -> None:
    """SIGKILL what is left of the process group that ``pid`` leads."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # nothing left; or the number was taken over by someone else's process


def stop_recorded(pid: int, ticks: int, grace_seconds: float) -> bool:
    """Stop a process that another launcher started, if it is still the one that was recorded. Returns whether it was.

    Args:
        pid: recorded pid.
        ticks: recorded start time, see ``start_ticks``.
        grace_seconds: time between SIGTERM and SIGKILL.
    """
    if not is_running(pid, ticks):
        return False
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + grace_seconds
    while is_running(pid, ticks) and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
    if is_running(pid, ticks):
        kill_group(pid)
    return True


def start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot; 0 if there is none. Together with the pid it is unique."""
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else 0


def is_running(pid: int, ticks: int) -> bool:
    """Whether the process that was recorded with this start time still runs (a zombie doesn't)."""
    fields = _stat_fields(pid) if pid > 0 else []
    return bool(fields) and fields[0] != "Z" and int(fields[19]) == ticks


def resident_bytes(pid: int) -> int:
    """Sum of the resident sets of a process and its descendants, in bytes. Shared pages count once a process."""
    children: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        fields = _stat_fields(int(entry.name)) if entry.name.isdigit() else []
        if fields:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
            resident[int(entry.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    found, total = [pid], 0
    while found:
        one = found.pop()
        total += resident.get(one, 0)
        found += children.get(one, [])
    return total


def _stat_fields(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat behind the command's name (it may hold anything): [0] the state, [1] the parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
