"""Where the evaluator is deployed."""

from __future__ import annotations

from pathlib import Path

from martlet_core.stage_settings import StageSettings
from pydantic import Field


class EvaluatorSettings(StageSettings):
    """Settings of ``serve`` and ``work``, from ``MARTLET_*`` variables."""

    grpc_address: str = Field(
        "127.0.0.1:50054", description="Address this service listens on for gRPC; port 0 picks a free one."
    )
    queue: str = Field("evaluator", description="Queue that jobs wait in and a worker serves.")
    gateway_url: str = Field(
        "http://127.0.0.1:8000/v1", description="The gateway's REST address, ending in /v1: models are asked there."
    )
    allowed_base_urls: str = Field(
        "", description="Addresses of external targets that jobs may name, separated by spaces; empty allows none."
    )
    benchmarks_dir: Path | None = Field(
        None, description="Data of lm-eval's stock tasks, a directory a task, with files train, validation, test."
    )
    in_process_targets: bool = Field(
        False,
        description="Whether jobs may load models in the worker's own process (engine transformers); it must then run "
        "in the environment evaluator-transformers.",
    )
    request_deadline_seconds: float = Field(
        600.0, gt=0, description="Longest that one question may take, its repetitions included."
    )
    checkpoint_seconds: float = Field(15.0, gt=0, description="Time between two checkpoints of the answers so far.")

    @property
    def allowed_urls(self) -> tuple[str, ...]:
        """``allowed_base_urls`` one by one."""
        return tuple(self.allowed_base_urls.split())
