"""The engine `transformers`: slower than vLLM, and at home wherever PyTorch runs.

Its server (``transformers_server``) is a child process like vLLM's, so that a crash costs the requests in work alone.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from martlet_core.errors import FailedPrecondition

from martlet_inference.engines.base import WholeModel
from martlet_inference.engines.server_process import ServerProgram, child_environment, threads_of


@dataclass(frozen=True)
class TransformersOptions:
    """What the server is told beside its model.

    Attributes:
        dtype: type it computes in; empty chooses float32 on a CPU and the model's own on a GPU.
        max_model_len: longest context in tokens; less where the model's own is.
        max_lora_rank: 0 serves without adapters.
        max_adapters: adapters held at a time.
        gpu_memory_share: most of a GPU's memory that it may take; more is an error of the answer that asks for it.
        threads: threads on a CPU; 0 takes ``OMP_NUM_THREADS`` where that is set, else all cores.
    """

    dtype: str = ""
    max_model_len: int = 2048
    max_lora_rank: int = 64
    max_adapters: int = 8
    gpu_memory_share: float = 0.9
    threads: int = 0


def installed_transformers() -> tuple[str, str]:
    """Version of transformers, and the device (``cpu``, ``cuda``) that this environment's torch was built for.

    Raises:
        FailedPrecondition: there is none.
    """
    try:
        cpu = importlib.metadata.version("torch").endswith("+cpu")
        importlib.metadata.version("peft")
        return importlib.metadata.version("transformers"), "cpu" if cpu else "cuda"
    except importlib.metadata.PackageNotFoundError as exc:
        raise FailedPrecondition(
            f"{exc.name} is not installed in this environment; install requirements.cpu.txt or requirements.cuda.txt of "
            "services/inference/envs/transformers, or set MARTLET_ENGINE to vllm or echo.",
            reason="ENGINE_NOT_INSTALLED",
        ) from exc


def transformers_program(options: TransformersOptions) -> ServerProgram:
    """The program that is started for each model."""
    version, device = installed_transformers()
    return ServerProgram(
        name="transformers",
        version=version,
        device=device,
        max_lora_rank=options.max_lora_rank,
        max_adapters=options.max_adapters,
        command=partial(command, options, device),
        environment=partial(environment, options),
    )


def command(options: TransformersOptions, device: str, model: WholeModel, socket_path: Path) -> list[str]:
    """The command line of a server for ``model`` that listens on a Unix socket."""
    assert model.directory is not None
    args = [sys.executable, "-m", "martlet_inference.engines.transformers_server", "--uds", str(socket_path)]
    args += ["--model", str(model.directory), "--served-model-name", model.name, "--device", device]
    args += ["--task", model.use.task.value]
    dtype = options.dtype or ("float32" if device == "cpu" else "auto")
    args += ["--dtype", dtype, "--max-model-len", str(options.max_model_len)]
    return [*args, "--gpu-memory-share", f"{options.gpu_memory_share:g}"]


def environment(options: TransformersOptions, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a server."""
    # Threads that spin at barriers lose twice beside a training job.
    return child_environment(base) | {
        "OMP_NUM_THREADS": str(threads_of(options.threads, base)),
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
    }
