"""A tracker's process as the daemon sees it: ask, with a deadline; end it whatever state it is in."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from martlet_core.child_process import LogLines

from martlet_trainer.tracking.run import Point, RunEnd, TrackedRun

logger = logging.getLogger(__name__)

#: Longest answer, in bytes.
_LONGEST_LINE = 1 << 20
_READ_BYTES = 65536
#: What variables with secrets are called.
_SECRET = re.compile(r".*(KEY|TOKEN|PASSWORD|SECRET).*")
_SHORTEST_SECRET = 6


class TrackerFailed(Exception):
    """A tool raised something, died or kept silent too long. The text holds no secret."""


class TrackerProcess:
    """Runs ``martlet_trainer.tracking.child`` in a session and process group of its own. Make one with ``start``.

    Args:
        kind: of the tracker.
        process: the child.
        answer_seconds: the tool is given up when an answer takes longer.
    """

    def __init__(self, kind: str, process: asyncio.subprocess.Process, answer_seconds: float) -> None:
        self._kind = kind
        self._process = process
        self._answer_seconds = answer_seconds
        self._lines = LogLines(lambda line: logger.info("%s: %s", kind, redacted(line, os.environ)))
        self._reader = asyncio.create_task(self._read_log())

    @classmethod
    async def start(cls, kind: str, directory: Path, answer_seconds: float) -> TrackerProcess:
        """Start one in a working directory, which is there. TrackerFailed if there is no room for it."""
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "martlet_trainer.tracking.child", kind),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=directory,
                env=tool_environment(os.environ),
                limit=_LONGEST_LINE,
                start_new_session=True,
            )
        except OSError as error:
            raise TrackerFailed(f"{kind}'s process couldn't be started: {error.strerror}") from error
        return cls(kind, process, answer_seconds)

    async def open(self, run: TrackedRun) -> Mapping[str, Any]:
        """Open the run; {tool_run, known} as of ``Tracker``. TrackerFailed, here and below, if the tool failed."""
        return await self._ask("open", asdict(run))

    async def log(self, points: Sequence[Point]) -> None:
        """Give points."""
        await self._ask("log", [asdict(point) for point in points])

    async def close(self, end: RunEnd) -> None:
        """The training is over."""
        await self._ask("close", asdict(end))

    async def leave(self) -> None:
        """The run goes on later."""
        await self._ask("leave", None)

    async def end(self) -> None:
        """Kill what is left of the process and its children."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        self._reader.cancel()

    async def _ask(self, verb: str, value: Any) -> Mapping[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(self._answer_seconds):
                self._process.stdin.write(json.dumps({verb: value}).encode() + b"\n")
                await self._process.stdin.drain()
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise TrackerFailed(f"{self._kind} didn't answer {verb!r} within {self._answer_seconds:g} s") from None
        except (BrokenPipeError, ConnectionResetError):
            line = b""
        if not line:
            last = self._lines.tail[-1] if self._lines.tail else "it left no word"
            raise TrackerFailed(redacted(f"{self._kind}'s process ended: {last}", os.environ))
        answer = json.loads(line)
        if "error" in answer:
            raise TrackerFailed(redacted(f"{self._kind}: {answer['error']}", os.environ))
        return answer

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(_READ_BYTES):
            self._lines.feed(data)
        self._lines.close()


def tool_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """A tool's variables: the daemon's without what is the deployment's own."""
    return {name: value for name, value in environ.items() if not name.startswith("MARTLET_")}


def redacted(text: str, environ: Mapping[str, str]) -> str:
    """The text without the values of variables that hold secrets, and without users and passwords in addresses."""
    for name, value in environ.items():
        if _SECRET.fullmatch(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return re.sub(r"://[^/@\s]+@", "://***@", text)
