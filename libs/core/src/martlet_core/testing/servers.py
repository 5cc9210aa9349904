"""Real servers for tests: they listen on free loopback ports, and end when the test process does."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from martlet_core.errors import Unavailable
from martlet_core.local_servers import (
    ServerCommand,
    free_port,
    seaweedfs_command,
    valkey_command,
    wait_s3,
    wait_valkey,
)

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class RunningServer:
    """A started server.

    Attributes:
        url: ``redis://...`` or ``http://...``.
        process: its process, in a session of its own.
        log_path: what it wrote to stdout and stderr.
        port: its TCP port.
        stop_seconds: how long ``stop`` waits between SIGTERM and SIGKILL.
    """

    url: str
    process: subprocess.Popen[bytes]
    log_path: Path
    port: int
    stop_seconds: float = 10.0

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after ``stop_seconds``. Does nothing if it ended already."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(self.stop_seconds)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def start_valkey(directory: Path, *, port: int = 0, password: str = "", append_only: bool = True) -> RunningServer:
    """Start Valkey and wait until it answers. The same ``directory`` and ``port`` again continue with the same data."""
    port = port or free_port()
    command = valkey_command(directory, port, password=password, append_only=append_only)
    server = _start(command, directory / "valkey.log", port)
    try:
        wait_valkey(server.url, server.process)
    except Unavailable as error:
        raise _with_log(server, error) from error
    return server


def start_seaweedfs(
    directory: Path, access_key: str, secret_key: str, *, port: int = 0, bucket: str = "martlet"
) -> RunningServer:
    """Start SeaweedFS and wait until it stores objects; makes ``bucket``. The same ``directory`` keeps its data."""
    port = port or free_port(with_grpc_offset=True)
    server = _start(seaweedfs_command(directory, port, access_key, secret_key), directory / "seaweedfs.log", port)
    try:
        wait_s3(server.url, access_key, secret_key, bucket, server.process)
    except Unavailable as error:
        raise _with_log(server, error) from error
    return server


def _start(command: ServerCommand, log_path: Path, port: int) -> RunningServer:
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **command.env},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    return RunningServer(command.url, process, log_path, port, command.stop_seconds)


def _die_with_parent() -> None:
    """Runs in the child: have the kernel kill it when the test process dies, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _with_log(server: RunningServer, error: Unavailable) -> Unavailable:
    server.kill()
    tail = server.log_path.read_text(errors="replace")[-2000:]
    return Unavailable(f"{error.message}\nEnd of {server.log_path}:\n{tail}")
