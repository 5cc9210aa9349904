"""Start the whole platform on one machine and keep it running.

``run`` is the launcher itself, in the foreground; ``start_detached`` starts one in the background. Data, ports and
secrets stay in the home directory, so a restart keeps all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

from martlet_core.errors import AlreadyExists, Unavailable

from martlet_cli import environments
from martlet_cli.api_key import ensure_api_key
from martlet_cli.credentials import load_or_make
from martlet_cli.layout import Layout, make_home, read_json
from martlet_cli.platform_options import PlatformOptions
from martlet_cli.platform_processes import plan
from martlet_cli.platform_state import Say, State, running_launcher, stop_leftovers, tail
from martlet_cli.ports import choose_ports
from martlet_cli.processes import HOPELESS_RESTARTS, ProcessStatus, Supervisor

#: How long the parts that everything needs may take to come up, in seconds.
START_SECONDS = 120.0
#: How long a start in the background may take, in seconds, environments and models to fetch included.
LONGEST_START_SECONDS = 1800.0
#: Inference may take minutes to load its model; training works meanwhile.
_LATE = ("inference", "base-model")
_POLL_SECONDS = 0.2


def run(layout: Layout, options: PlatformOptions, say: Say) -> int:
    """Start everything and keep it running until SIGINT or SIGTERM; returns the exit code.

    Raises:
        AlreadyExists: if a platform runs in this home already.
        FailedPrecondition: if an environment or a port can't be had.
        Unavailable: if the platform doesn't come up; everything is stopped again then.
    """
    if running_launcher(layout):
        raise AlreadyExists(
            f"the platform is up already in {layout.home}; `martlet status` shows it, `martlet down` stops it"
        )
    stopping = _stop_on_signals()
    stop_leftovers(layout, say)
    make_home(layout)
    state = State(layout)
    state.phase("installing")
    try:
        for name in _needed_environments(options):
            environments.sync(layout, name, say=say)
        if stopping.is_set():
            return 0
        return _supervise(layout, options, state, stopping, say)
    finally:
        state.close()


def _supervise(layout: Layout, options: PlatformOptions, state: State, stopping: threading.Event, say: Say) -> int:
    credentials = load_or_make(layout.secrets_file)
    ports = choose_ports(options.ports, state.last_ports)
    platform = plan(layout, options, credentials, ports)
    state.begin(ports, options)
    supervisor = Supervisor(platform.specs, on_change=lambda status: _changed(state, status, say))
    core = [spec.name for spec in platform.specs if spec.name not in _LATE]
    base_url = f"http://127.0.0.1:{ports['http']}/v1"
    try:
        # The stores first: our key must be in them before a gateway starts that would make one of its own.
        first = [spec.name for spec in platform.specs if not spec.needs]
        supervisor.start(first)
        _wait(supervisor, layout, [name for name in first if name not in _LATE], stopping)
        if not stopping.is_set():
            ensure_api_key(layout, platform.settings, base_url, say)
            supervisor.start()
            _wait(supervisor, layout, core, stopping)
        if not stopping.is_set():
            state.phase("up")
            say(f"up: {base_url} (gRPC 127.0.0.1:{ports['grpc']})")
        stopping.wait()
    finally:
        state.phase("stopping")
        say("stopping")
        supervisor.stop()
    return 0


def _wait(supervisor: Supervisor, layout: Layout, names: list[str], stopping: threading.Event) -> None:
    late = supervisor.wait_ready(names, START_SECONDS, stopping)
    if late and not stopping.is_set():
        said = "\n".join(tail(layout, late[0], 15))
        raise Unavailable(f"{', '.join(late)} didn't come up. The end of {layout.logs / late[0]}.log:\n{said}")


def start_detached(layout: Layout, arguments: list[str], say: Say, *, wait_for: str = "core") -> None:
    """Start a launcher in a session of its own and wait until the platform is up.

    Args:
        arguments: of ``martlet up``, without ``--detach``.
        say: takes lines about the progress.
        wait_for: ``core`` (all but inference) or ``all``.

    Raises:
        Unavailable: if it ends before it is up; the message holds the end of its log.
    """
    if running_launcher(layout):
        raise AlreadyExists(
            f"the platform is up already in {layout.home}; `martlet status` shows it, `martlet down` stops it"
        )
    make_home(layout)
    log_path = layout.logs / "launcher.log"
    with open(log_path, "ab") as log:
        seen = log.tell()
        launcher = subprocess.Popen(
            [sys.executable, "-m", "martlet_cli", "up", *arguments],
            env=os.environ | {"MARTLET_HOME": str(layout.home), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + LONGEST_START_SECONDS
    while True:
        ended = launcher.poll() is not None
        with open(log_path, "rb") as log:
            log.seek(seen)
            told = log.read()
        if ended:
            raise Unavailable(
                f"the launcher ended with exit code {launcher.returncode}:\n{told.decode(errors='replace')[-2000:]}"
            )
        complete = told[: told.rfind(b"\n") + 1]
        seen += len(complete)
        for line in complete.decode(errors="replace").splitlines():
            say(line)
        if _is_up(layout, launcher.pid, wait_for):
            return
        if time.monotonic() > deadline:
            raise Unavailable(
                f"not up after {LONGEST_START_SECONDS / 60:.0f} minutes; `martlet status` shows what runs"
            )
        time.sleep(_POLL_SECONDS)


def _is_up(layout: Layout, launcher_pid: int, wait_for: str) -> bool:
    """Whether what is waited for is ready. Unavailable if inference keeps dying; the rest runs on then."""
    state = read_json(layout.state_file)
    if state.get("launcher", {}).get("pid") != launcher_pid or state.get("phase") != "up":
        return False
    if wait_for == "core":
        return True
    late = [process for process in state["processes"].values() if process["state"] not in ("ready", "done")]
    for process in late:
        if process["restarts"] >= HOPELESS_RESTARTS:
            said = "\n".join(tail(layout, process["name"], 15))
            raise Unavailable(f"{process['name']} doesn't come up; the rest runs. The end of its log:\n{said}")
    return not late


def _changed(state: State, status: ProcessStatus, say: Say) -> None:
    state.update(status)
    words = {
        "ready": f"ready after {status.ready_seconds or 0:.1f} s" + (f", port {status.port}" if status.port else ""),
        "done": "done",
        "restarting": f"ended with exit code {status.last_exit_code}; starting again",
    }
    if status.state.value in words:
        say(f"{status.name}: {words[status.state.value]}")


def _needed_environments(options: PlatformOptions) -> list[str]:
    return list(dict.fromkeys(options.environment(name) for name in options.services))


def _stop_on_signals() -> threading.Event:
    """An event that SIGINT or SIGTERM sets. Further ones change nothing: stopping is under way, and it has an end."""
    stopping = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return stopping
