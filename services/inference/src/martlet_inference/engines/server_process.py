"""An engine's own server as a child process: how it is started, what it writes, how it ends."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from martlet_inference.engines.base import WholeModel

log = logging.getLogger(__name__)

KEPT_LINES = 60
#: Time between SIGTERM and SIGKILL, in seconds.
STOP_SECONDS = 10.0
#: How long to read on after the end, in seconds.
REST_SECONDS = 2.0


@dataclass(frozen=True)
class ServerProgram:
    """A program that serves one model in OpenAI's shape on a Unix socket (ADR 0004 says what it must offer beside).

    Attributes:
        name: of the engine.
        version: of the software.
        device: ``cpu`` or ``cuda``.
        max_lora_rank: largest rank of an adapter; 0 when it takes none.
        max_adapters: adapters held at a time.
        command: its command line for a model and the path of the socket.
        environment: its environment, made of the replica's.
        bare: the same without adapters, for models that the engine serves but takes no adapters of; None where there are none.
    """

    name: str
    version: str
    device: str
    max_lora_rank: int
    max_adapters: int
    command: Callable[[WholeModel, Path], list[str]]
    environment: Callable[[Mapping[str, str]], dict[str, str]]
    bare: ServerProgram | None = None


def child_environment(base: Mapping[str, str]) -> dict[str, str]:
    """``base`` without our own settings, which hold secrets, and with what every engine is told."""
    env = {key: value for key, value in base.items() if not key.startswith("MARTLET_")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # engines import so much that compiling it anew doubles their start
    return env | {
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",  # models are directories
        "TRANSFORMERS_OFFLINE": "1",
    }


def threads_of(wanted: int, base: Mapping[str, str]) -> int:
    """Threads to compute with on a CPU: as wanted, else ``OMP_NUM_THREADS``, else one a core."""
    named = base.get("OMP_NUM_THREADS", "")
    return wanted or (int(named) if named.isdigit() else 0) or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Output:
    """What a process and its children write."""

    reader: asyncio.StreamReader
    transport: asyncio.BaseTransport


class _PipeEnd:
    """A descriptor that an event loop is given, and that is closed once, whichever loop it is.

    asyncio's own loop closes the object. uvloop closes the number, and then the object as well (``UVSocketHandle._close``, 0.23): by then another
    thread may have been given the number for a file of its own, which would be closed under its hands.
    """

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop) -> None:
        self._fd = fd
        self._ours = isinstance(loop, asyncio.BaseEventLoop)

    def fileno(self) -> int:
        """The number."""
        return self._fd

    def close(self) -> None:
        """Close it, if the loop doesn't; once."""
        if self._ours:
            self._ours = False
            os.close(self._fd)


async def spawn(command_line: Sequence[str], env: Mapping[str, str]) -> tuple[asyncio.subprocess.Process, Output]:
    """Start a process in a group of its own, with its output on a pipe of ours.

    With asyncio's own pipe ``wait`` would not end before the pipe is closed, and children that outlive a killed server
    keep it open: the death would go unnoticed.
    """
    loop = asyncio.get_running_loop()
    read_end, write_end = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *command_line,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=write_end,
            stderr=write_end,
            start_new_session=True,
        )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    reader = asyncio.StreamReader(limit=2**20)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), _PipeEnd(read_end, loop))
    return process, Output(reader, transport)


class ServerProcess:
    """A running server. Its processes are one group, which is ended as a whole."""

    def __init__(self, process: asyncio.subprocess.Process, output: Output, directory: Path, name: str = "") -> None:
        self._name = name
        self._process = process
        self._output = output
        self._directory = directory
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        # In a context of its own: its lines belong to no request.
        self._relay = asyncio.create_task(self._relay_output(), name=f"{name}-output", context=contextvars.Context())

    @classmethod
    async def start(cls, program: ServerProgram, model: WholeModel) -> ServerProcess:
        """Start a server; it is not ready yet."""
        # Only we may enter it; short, as the paths of sockets must be.
        directory = Path(tempfile.mkdtemp(prefix=f"martlet-{program.name}-"))
        args = program.command(model, directory / "http.sock")
        wrapper = [sys.executable, "-m", "martlet_inference.engines.exec_child", str(os.getpid())]
        process, output = await spawn([*wrapper, *args], program.environment(os.environ))
        log.info("%s started", program.name, extra={"pid": process.pid, "command": shlex.join(args)})
        return cls(process, output, directory, program.name)

    @property
    def pid(self) -> int:
        """Process id, which is also that of the group."""
        return self._process.pid

    @property
    def socket_path(self) -> Path:
        """Where it listens once it is up."""
        return self._directory / "http.sock"

    @property
    def running(self) -> bool:
        """Whether the server process lives."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """Wait for its end; its return code, negative for a signal."""
        return await self._process.wait()

    async def stop(self) -> None:
        """End the whole group: ask, then kill. Also cleans up after a server that died by itself."""
        if self.running:
            self._signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        self._signal(signal.SIGKILL)
        await self._process.wait()
        await self.read_rest()
        self._relay.cancel()
        await asyncio.gather(self._relay, return_exceptions=True)
        self._output.transport.close()
        await asyncio.to_thread(shutil.rmtree, self._directory, True)

    async def read_rest(self) -> None:
        """After its end: wait until what it wrote is read; children that hold its output open are not waited for long."""
        await asyncio.wait({self._relay}, timeout=REST_SECONDS)

    def last_lines(self) -> Sequence[str]:
        """The last lines it wrote."""
        return list(self._lines)

    def explain_end(self) -> str:
        """The line of its output that says best why it ended."""
        for marker in ("Value error, ", "Error: ", "ERROR"):
            for line in reversed(self._lines):
                if marker in line:
                    return line.strip()
        return self._lines[-1].strip() if self._lines else "no output"

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _relay_output(self) -> None:
        while True:
            try:
                raw = await self._output.reader.readline()
            except ValueError:  # a line longer than the limit; what was read of it is gone
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip()
            if line:
                self._lines.append(line)
                log.info("%s", line, extra={"source": self._name})
