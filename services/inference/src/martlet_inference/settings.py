"""Where an inference replica is deployed and what it may use."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from martlet_core.artifacts.cache import DEFAULT_MAX_BYTES
from martlet_core.gpu_settings import GpuSettings
from pydantic import Field, field_validator

#: What vLLM takes as its maximum.
LORA_RANKS = (0, 8, 16, 32, 64, 128, 256, 320, 512)


class InferenceSettings(GpuSettings):
    """Settings of the inference service, from ``MARTLET_*`` variables."""

    grpc_address: str = Field(
        "127.0.0.1:50053", description="Address this service listens on for gRPC; port 0 picks a free one."
    )
    engine: Literal["vllm", "transformers", "echo"] = Field(
        "vllm", description="Engine: vllm, transformers where vLLM doesn't run, or echo for tests and benchmarks."
    )
    model: str = Field(
        "smollm2-135m-instruct",
        description="Whole model to serve from the start: a name, or a hub id; empty waits for LoadModel.",
    )
    model_dir: Path | None = Field(None, description="Directory of that model, instead of the registry's artifact.")
    model_revision: str = Field(
        "", description="Commit of that model where it is a hub id that doesn't end in one (`org/model@commit`)."
    )
    model_cache_bytes: int = Field(
        DEFAULT_MAX_BYTES,
        ge=1,
        description="Most bytes of downloaded models and adapters that stay on the disk; as much again may lie in the "
        "cache of blobs behind them.",
    )
    resolve_models: bool = Field(
        True, description="Look names up in the model registry; false serves `model` alone and needs no object store."
    )
    gateway_address: str = Field(
        "", description="gRPC address of the gateway to register with; empty registers nowhere."
    )
    advertise_address: str = Field(
        "", description="host:port under which the gateway reaches this replica; default: grpc_address."
    )
    accepts_placement: bool = Field(
        True, description="The gateway may ask this replica to swap its engine for another whole model."
    )
    renew_seconds: float = Field(
        2.0, gt=0, description="Interval at which models and load are reported to the gateway."
    )
    drain_seconds: float = Field(
        30.0, ge=0, description="How long running requests may take to end when the replica is stopped."
    )
    max_requests: int = Field(1024, ge=1, description="Requests in work beyond which more are refused.")
    max_lora_rank: int = Field(64, description="Largest LoRA rank of an adapter; 0: none taken.")
    max_adapters: int = Field(8, ge=1, description="Adapters held at a time; the one unused for longest makes room.")
    max_model_len: int = Field(2048, ge=64, description="Longest context in tokens: prompt and answer together.")
    dtype: str = Field(
        "", description="Type the engine computes in; default: float32 on a CPU, the model's own on a GPU."
    )
    kv_cache_gib: int = Field(1, ge=1, description="Memory for the KV cache on a CPU, in GiB.")
    gpu_count: int = Field(
        1, ge=1, description="GPUs of the replica; more than one hold a part of the model each (tensor parallelism)."
    )
    engine_threads: int = Field(
        0,
        ge=0,
        description="Threads the engine computes with on a CPU; 0: OMP_NUM_THREADS, or as many as there are cores.",
    )
    tool_call_parser: str = Field(
        "hermes", description="How the model writes tool calls; empty refuses tool_choice auto."
    )
    engine_args: str = Field("", description="More arguments for vLLM's command line, as in a shell.")
    engine_start_seconds: float = Field(900.0, gt=0, description="How long the engine may take to get a model ready.")
    echo_tokens_per_second: float = Field(
        0.0, ge=0, description="Rate of each stream of the echo engine; 0 sends at once."
    )
    echo_slots: int = Field(0, ge=0, description="Answers that the echo engine gives at a time; 0: no limit.")
    echo_default_tokens: int = Field(16, ge=1, description="Tokens of an echo answer whose request names no maximum.")

    @field_validator("max_lora_rank")
    @classmethod
    def _rank_that_vllm_has(cls, rank: int) -> int:
        if rank not in LORA_RANKS:
            raise ValueError(f"is {rank}; must be one of {', '.join(map(str, LORA_RANKS))}")
        return rank
