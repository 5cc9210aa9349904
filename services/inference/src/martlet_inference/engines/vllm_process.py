"""The vLLM server as a program: its command line and its environment."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from martlet_core.model_tasks import ModelTask

from martlet_inference.engines.base import WholeModel
from martlet_inference.engines.sentence_config import sentence_config
from martlet_inference.engines.server_process import child_environment, threads_of
from martlet_inference.model_use import read_json

#: Names that configs have for the longest text; those that vLLM reads.
_CONTEXT_KEYS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)


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
    config = read_json(model.directory / "config.json")
    args = [options.python, "-m", "vllm.entrypoints.openai.api_server", "--uds", str(socket_path)]
    args += ["--model", str(model.directory), "--served-model-name", model.name]
    args += ["--max-model-len", str(min(options.max_model_len, *_context_lengths(model.directory, config)))]
    args += ["--dtype", options.dtype or ("float32" if _computes_in_float32(options, config) else "auto")]
    args += ["--disable-uvicorn-access-log"]
    if not model.use.generates:
        args += ["--runner", "pooling", *_pooler(model)]
    elif options.max_lora_rank:
        args += ["--enable-lora", "--max-lora-rank", str(options.max_lora_rank)]
        args += ["--max-loras", str(options.max_adapters), "--max-cpu-loras", str(options.max_adapters)]
    if options.tool_call_parser and model.use.generates:
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
    env = child_environment(base) | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1"}
    env.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if options.device == "cpu":
        env |= {
            "VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib),
            # Compute in the engine's own process: a worker beside it costs another import of torch at each start, and
            # the two wait for one another by spinning, which takes a core.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # Left alone, vLLM binds its threads to all cores but one and keeps that free: half of a two-core machine.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads_of(options.threads, base)),
            "OMP_WAIT_POLICY": "passive",  # threads that spin at barriers lose twice beside a training job
        }
    return env


def _context_lengths(directory: Path, config: Mapping[str, Any]) -> list[int]:
    """What the model's own files bound it by, in tokens; vLLM refuses to go beyond any of these."""
    # A model that reads pictures, too, has its text model's config inside.
    texts = (config, config.get("text_config") or {})
    found = [text.get(name) for text in texts for name in _CONTEXT_KEYS]
    found.append(read_json(directory / "sentence_bert_config.json").get("max_seq_length"))
    return [length or 2**31 for length in found]


def _pooler(model: WholeModel) -> list[str]:
    """How vectors are pooled, where the directory doesn't say: architectures have defaults of their own in vLLM."""
    assert model.directory is not None
    if model.use.task is not ModelTask.EMBEDDING:
        return []
    found = sentence_config(model.directory)  # what can't be served alike by both engines is refused
    if (model.directory / "modules.json").is_file():
        return []
    return [
        "--pooler-config",
        json.dumps({"seq_pooling_type": found.pooling.upper(), "use_activation": found.normalize}),
    ]


def _computes_in_float32(options: VllmOptions, config: Mapping[str, Any]) -> bool:
    # Kernels for quantized weights refuse float32 activations.
    return options.device == "cpu" and "quantization_config" not in config
