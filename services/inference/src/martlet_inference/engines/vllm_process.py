"""The vLLM server as a child process: its command line, its environment, its output, its end."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from martlet_inference.engines.base import WholeModel

log = logging.getLogger(__name__)

KEPT_LINES = 60
#: Time between SIGTERM and SIGKILL, in seconds.
STOP_SECONDS = 10.0
#: How long to read on after the end, in seconds.
REST_SECONDS = 2.0


@dataclass(frozen=True)
class VllmOptions:
    """What a vLLM server is told beside its model.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dtype: type it computes in; empty chooses float32 on a CPU and the model's own on a GPU. Without AVX-512 or AMX,
            bfloat16 on a CPU is several times slower (docs/adr/0004-vllm-child-process.md has the figures).
        max_model_len: longest context in tokens; less where the model's own is.
        max_lora_rank: 0 serves without adapters.
        max_adapters: adapters held at a time.
        kv_cache_gib: KV cache on a CPU.
        gpu_memory_share: share of each GPU's memory that it takes, its context included.
        gpu_count: GPUs that hold a part of the model each.
        threads: threads on a CPU; 0 takes ``OMP_NUM_THREADS`` where that is set, else all cores.
        tool_call_parser: how the model writes tool calls; empty refuses ``tool_choice: auto``.
        extra_args: more arguments, as in a shell.
        python: interpreter of the environment that vLLM is in.
    """

    device: str
    dtype: str = ""
    max_model_len: int = 2048
    max_lora_rank: int = 64
    max_adapters: int = 8
    kv_cache_gib: int = 1
    gpu_memory_share: float = 0.9
    gpu_count: int = 1
    threads: int = 0
    tool_call_parser: str = "hermes"
    extra_args: str = ""
    python: str = field(default_factory=lambda: sys.executable)


def command(options: VllmOptions, model: WholeModel, socket_path: Path) -> list[str]:
    """The command line of a server for ``model`` that listens on a Unix socket."""
    assert model.directory is not None
    config = model_config(model.directory)
    args = [options.python, "-m", "vllm.entrypoints.openai.api_server", "--uds", str(socket_path)]
    args += ["--model", str(model.directory), "--served-model-name", model.name]
    args += ["--max-model-len", str(min(options.max_model_len, config.get("max_position_embeddings", 2**31)))]
    args += ["--dtype", options.dtype or ("float32" if _computes_in_float32(options, config) else "auto")]
    args += ["--disable-uvicorn-access-log"]
    if options.max_lora_rank:
        args += ["--enable-lora", "--max-lora-rank", str(options.max_lora_rank)]
        args += ["--max-loras", str(options.max_adapters), "--max-cpu-loras", str(options.max_adapters)]
    if options.tool_call_parser:
        args += ["--enable-auto-tool-choice", "--tool-call-parser", options.tool_call_parser]
    if options.device == "cpu":
        args += ["--enforce-eager"]  # compiling takes minutes at each start, and adapters turn it off anyway
        args += ["--distributed-executor-backend", "uni"]  # see VLLM_ENABLE_V1_MULTIPROCESSING below
        args += ["--block-size", "32"]  # prompts share whole blocks only, and most are shorter than the default of 128
    else:
        args += ["--gpu-memory-utilization", f"{options.gpu_memory_share:g}"]
        if options.gpu_count > 1:
            args += ["--tensor-parallel-size", str(options.gpu_count)]
    return args + shlex.split(options.extra_args)


def environment(options: VllmOptions, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a server: ``base`` without our own settings, which hold secrets, and with vLLM's."""
    env = {key: value for key, value in base.items() if not key.startswith("MARTLET_")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # vLLM imports so much that compiling it anew doubles its start
    env |= {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",  # models are directories
        "TRANSFORMERS_OFFLINE": "1",
    }
    env.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if options.device == "cpu":
        wanted = base.get("OMP_NUM_THREADS", "")
        threads = options.threads or (int(wanted) if wanted.isdigit() else 0) or len(os.sched_getaffinity(0))
        env |= {
            "VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib),
            # Compute in the engine's own process: a worker beside it costs another import of torch at each start, and
            # the two wait for one another by spinning, which takes a core.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # Left alone, vLLM binds its threads to all cores but one and keeps that free: half of a two-core machine.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "passive",  # threads that spin at barriers lose twice beside a training job
        }
    return env


def model_config(directory: Path) -> dict[str, Any]:
    """The ``config.json`` of a model directory; empty if there is none."""
    path = directory / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _computes_in_float32(options: VllmOptions, config: Mapping[str, Any]) -> bool:
    # Kernels for quantized weights refuse float32 activations.
    return options.device == "cpu" and "quantization_config" not in config


@dataclass(frozen=True)
class Output:
    """What a process and its children write."""

    reader: asyncio.StreamReader
    transport: asyncio.BaseTransport


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
    pipe = os.fdopen(read_end, "rb", buffering=0)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return process, Output(reader, transport)


class VllmProcess:
    """A running server. Its processes are one group, which is ended as a whole."""

    def __init__(self, process: asyncio.subprocess.Process, output: Output, directory: Path) -> None:
        self._process = process
        self._output = output
        self._directory = directory
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        # In a context of its own: its lines belong to no request.
        self._relay = asyncio.create_task(self._relay_output(), name="vllm-output", context=contextvars.Context())

    @classmethod
    async def start(cls, options: VllmOptions, model: WholeModel) -> VllmProcess:
        """Start a server; it is not ready yet."""
        directory = Path(
            tempfile.mkdtemp(prefix="martlet-vllm-")
        )  # only we may enter it; short, as socket paths must be
        args = command(options, model, directory / "http.sock")
        wrapper = [sys.executable, "-m", "martlet_inference.engines.exec_child", str(os.getpid())]
        process, output = await spawn([*wrapper, *args], environment(options, os.environ))
        log.info("vllm started", extra={"pid": process.pid, "command": shlex.join(args)})
        return cls(process, output, directory)

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
                log.info("%s", line, extra={"source": "vllm"})
