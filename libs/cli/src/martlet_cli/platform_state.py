"""What the launcher writes into ``state.json``, and what other commands do with it: show, stop, read logs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from martlet_core.errors import FailedPrecondition

from martlet_cli.layout import Layout, read_json, write_json
from martlet_cli.platform_options import PlatformOptions
from martlet_cli.processes import ProcessStatus, is_running, resident_bytes, start_ticks, stop_recorded

Say = Callable[[str], None]
#: How long a launcher that was told to stop may take, in seconds: a worker may be writing a checkpoint.
STOP_SECONDS = 100.0


def stop(layout: Layout, say: Say) -> bool:
    """Stop the platform by its recorded pids. Returns whether anything ran."""
    state = read_json(layout.state_file)
    launcher = state.get("launcher", {})
    stopped = stop_recorded(launcher.get("pid", 0), launcher.get("start_ticks", 0), STOP_SECONDS)
    return stop_leftovers(layout, say) or stopped


def status(layout: Layout) -> dict[str, Any]:
    """What runs: phase, home, ports, and for each process its name, state, pid, port, restarts, times and memory."""
    state = read_json(layout.state_file)
    launcher_runs = running_launcher(layout)
    processes = []
    for recorded in state.get("processes", {}).values():
        alive = is_running(recorded["pid"], recorded["start_ticks"])
        shown = recorded["state"] if launcher_runs or alive else "stopped"
        processes.append(
            {
                "name": recorded["name"],
                "state": shown,
                "pid": recorded["pid"] if alive else None,
                "port": recorded["port"] or None,
                "restarts": recorded["restarts"],
                "ready_seconds": recorded["ready_seconds"],
                "uptime_seconds": round(time.time() - recorded["started_at"]) if alive else None,
                "resident_bytes": resident_bytes(recorded["pid"]) if alive else None,
            }
        )
    return {
        "phase": state.get("phase", "down") if launcher_runs else "down",
        "home": str(layout.home),
        "ports": state.get("ports", {}),
        "processes": processes,
    }


def running_launcher(layout: Layout) -> bool:
    """Whether the launcher that wrote the state file still runs."""
    launcher = read_json(layout.state_file).get("launcher", {})
    return is_running(launcher.get("pid", 0), launcher.get("start_ticks", 0))


class State:
    """``state.json``: written at each change, so that another command can see and stop what runs."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.state_file
        self.last_ports: dict[str, int] = read_json(self._path).get("ports", {})
        self._lock = threading.Lock()
        self._value: dict[str, Any] = {
            "launcher": {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid()), "started_at": time.time()},
            "ports": self.last_ports,
            "processes": {},
        }

    def begin(self, ports: Mapping[str, int], options: PlatformOptions) -> None:
        self._value["ports"] = dict(ports)
        self._value["options"] = asdict(options)
        self.phase("starting")

    def phase(self, name: str) -> None:
        with self._lock:
            self._value["phase"] = name
            write_json(self._path, self._value)

    def update(self, process: ProcessStatus) -> None:
        with self._lock:
            self._value["processes"][process.name] = asdict(process)
            write_json(self._path, self._value)

    def close(self) -> None:
        with self._lock:
            self._value["launcher"] = {}
            self._value["phase"] = "down"
            write_json(self._path, self._value)


def stop_leftovers(layout: Layout, say: Say) -> bool:
    """Stop processes of a launcher that was killed."""
    found = False
    for recorded in reversed(list(read_json(layout.state_file).get("processes", {}).values())):
        if is_running(recorded["pid"], recorded["start_ticks"]):
            say(f"stopping {recorded['name']} (pid {recorded['pid']}), left behind by a launcher that is gone")
            stop_recorded(recorded["pid"], recorded["start_ticks"], 20.0)
            found = True
    return found


def tail(layout: Layout, process: str, lines: int) -> list[str]:
    """The last lines of a process's log.

    Raises:
        FailedPrecondition: if there is no such log.
    """
    path = layout.logs / f"{process}.log"
    if not path.is_file():
        known = sorted(log.stem for log in layout.logs.glob("*.log"))
        raise FailedPrecondition(f"there is no log of {process!r}; known are {', '.join(known) or 'none'}")
    with open(path, "rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - 400 * lines))
        return stream.read().decode(errors="replace").splitlines()[-lines:]
