"""A recipe's process as its supervisor sees it: start, listen, stop, kill."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core import child_protocol as protocol

logger = logging.getLogger(__name__)

#: Longest log line kept, and lines kept per stream and attempt; what is beyond is counted, not kept.
LINE_CHARACTERS = 2000
LINES_PER_STREAM = 5000
_TAIL_LINES = 20
_READ_BYTES = 65536
#: How long readers may take to drain the pipes of a process group that is dead.
_DRAIN_SECONDS = 5.0


@dataclass(frozen=True)
class ChildExit:
    """How the process ended.

    Attributes:
        exit_code: as of ``subprocess``: negative means killed by that signal.
        final: its last message (``child_protocol.FINAL_TYPES``); None if it had no time to send one.
        stderr_tail: the last lines it wrote to stderr.
    """

    exit_code: int
    final: Mapping[str, Any] | None
    stderr_tail: str

    def describe(self) -> str:
        """Why it ended, for people."""
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        name = signal.Signals(-self.exit_code).name
        if -self.exit_code == signal.SIGKILL:
            return f"killed by {name}, as the kernel does when memory runs out"
        return f"killed by {name}"


class LogLines:
    """Cuts a byte stream into log lines within limits. Of a line redrawn with carriage returns only the last state is
    kept.
    """

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._partial = b""
        self._count = 0
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def feed(self, data: bytes) -> None:
        """Take bytes in; calls ``on_line`` for each line that they complete."""
        *lines, rest = (self._partial + data).split(b"\n")
        for line in lines:
            self._emit(line)
        self._partial = rest[rest.rstrip(b"\r").rfind(b"\r") + 1 :]
        if len(self._partial) > _READ_BYTES:  # no line break at all: keep the beginning
            self._emit(self._partial)
            self._partial = b""

    def close(self) -> None:
        """Emit what is left without a line break."""
        if self._partial:
            self._emit(self._partial)
            self._partial = b""

    def _emit(self, line: bytes) -> None:
        text = line.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode(errors="replace").rstrip()
        if not text:
            return
        if len(text) > LINE_CHARACTERS:
            text = f"{text[:LINE_CHARACTERS]} ... ({len(text) - LINE_CHARACTERS} more characters)"
        self.tail.append(text)
        self._count += 1
        if self._count <= LINES_PER_STREAM:
            self._on_line(text)
        elif self._count == LINES_PER_STREAM + 1:
            self._on_line(f"(over {LINES_PER_STREAM} lines in this attempt: further ones are not recorded)")


class ChildProcess:
    """Runs ``python -m martlet_core.child`` in a session and process group of its own.

    Args:
        entrypoint: the recipe, ``module:function``.
        workdir: the job's directory; also the process's working directory.
        silence_seconds: the child kills its group when ``renew`` was not called for that long.
        environ: variables that it has beside ours.
        on_message: called with each message but the final one, from a reader thread.
        on_log_line: called with (``stdout`` or ``stderr``, line), from a reader thread.
        on_exit: called once the whole group is dead and its pipes are drained.
    """

    def __init__(
        self,
        entrypoint: str,
        workdir: Path,
        *,
        silence_seconds: float,
        environ: Mapping[str, str] | None = None,
        on_message: Callable[[Mapping[str, Any]], None],
        on_log_line: Callable[[str, str], None],
        on_exit: Callable[[], None],
    ) -> None:
        self._on_message = on_message
        self._on_exit = on_exit
        self._final: Mapping[str, Any] | None = None
        self._stderr = LogLines(lambda line: on_log_line("stderr", line))
        self._stdout = LogLines(lambda line: on_log_line("stdout", line))
        self._exited = threading.Event()
        self._lifeline_lock = threading.Lock()
        self._lifeline_fd: int | None
        self._process, report_fd, self._lifeline_fd = self._spawn(entrypoint, workdir, silence_seconds, environ or {})
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read_report, args=(report_fd,), name="child-report", daemon=True),
            threading.Thread(
                target=_read_log, args=(self._process.stdout.fileno(), self._stdout), name="child-stdout", daemon=True
            ),
            threading.Thread(
                target=_read_log, args=(self._process.stderr.fileno(), self._stderr), name="child-stderr", daemon=True
            ),
        ]
        for reader in self._readers:
            reader.start()
        threading.Thread(target=self._await_exit, name="child-exit", daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id, also that of the group."""
        return self._process.pid

    def renew(self) -> None:
        """Tell the child that the lease was renewed."""
        with self._lifeline_lock:
            if self._lifeline_fd is not None:
                # A full pipe: the child is stopped and will find the bytes. A broken one: it is dead, the exit thread knows.
                with suppress(BlockingIOError, BrokenPipeError):
                    os.write(self._lifeline_fd, b".")

    def terminate(self) -> None:
        """Ask the recipe to write a checkpoint and stop. Its helpers (data loaders, ranks) are the recipe's to stop: a
        signal to them would take them away from under the checkpoint.
        """
        self._signal(lambda pid: os.kill(pid, signal.SIGTERM))

    def kill(self) -> None:
        """Kill the whole group at once."""
        self._signal(lambda pid: os.killpg(pid, signal.SIGKILL))

    def exit(self) -> ChildExit | None:
        """How it ended; None while it runs."""
        if not self._exited.is_set():
            return None
        return ChildExit(self._process.returncode, self._final, "\n".join(self._stderr.tail))

    def wait(self, timeout_seconds: float | None = None) -> ChildExit | None:
        """Wait for the end; None if it didn't come in time."""
        self._exited.wait(timeout_seconds)
        return self.exit()

    @staticmethod
    def _spawn(
        entrypoint: str, workdir: Path, silence_seconds: float, environ: Mapping[str, str]
    ) -> tuple[subprocess.Popen[bytes], int, int]:
        report_read, report_write = os.pipe()
        lifeline_read, lifeline_write = os.pipe()
        os.set_blocking(lifeline_write, False)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "martlet_core.child", entrypoint, str(workdir.resolve())],
                cwd=workdir,
                env=protocol.child_environment(
                    os.environ, report_fd=report_write, lifeline_fd=lifeline_read, silence_seconds=silence_seconds
                )
                | dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(report_write, lifeline_read),
                start_new_session=True,
            )
        except BaseException:
            os.close(report_read)
            os.close(lifeline_write)
            raise
        finally:
            os.close(report_write)
            os.close(lifeline_read)
        return process, report_read, lifeline_write

    def _read_report(self, report_fd: int) -> None:
        with os.fdopen(report_fd, "rb") as stream:
            for line in stream:
                self._take_message(line)

    def _take_message(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            kind = message["type"]
        except (ValueError, KeyError, TypeError):
            logger.warning("The recipe's process wrote a line that is no message: %r", line[:200])
            return
        if kind in protocol.FINAL_TYPES:
            self._final = message
            return
        try:
            self._on_message(message)
        except Exception:  # a reader must go on reading, or the recipe would block on a full pipe
            logger.exception("The message %r could not be taken in.", line[:200])

    def _await_exit(self) -> None:
        # The leader is left as a zombie until its group is killed: its id can't be given to anyone else meanwhile.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self.kill()
        for reader in self._readers:
            reader.join(_DRAIN_SECONDS)
        self._process.wait()
        with self._lifeline_lock:
            if self._lifeline_fd is not None:
                os.close(self._lifeline_fd)
                self._lifeline_fd = None
        self._exited.set()
        self._on_exit()

    def _signal(self, send: Callable[[int], None]) -> None:
        if self._process.returncode is not None:
            return
        with suppress(ProcessLookupError):  # gone by itself meanwhile
            send(self._process.pid)


def _read_log(fd: int, lines: LogLines) -> None:
    while data := os.read(fd, _READ_BYTES):
        lines.feed(data)
    lines.close()
