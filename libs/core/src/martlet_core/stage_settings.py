"""Where a job stage is deployed, and what it may use: the settings that trainer, quantizer and evaluator share."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from martlet_core.gpu_settings import GpuSettings


class StageSettings(GpuSettings):
    """Settings of a stage's ``serve`` and ``work``, from ``MARTLET_*`` variables. A stage gives ``grpc_address`` and ``queue``
    defaults of its own."""

    models_dir: Path = Field(Path(".martlet/models"), description="Prepared base models, one directory a name.")
    model_roots: str = Field(
        "", description="Directories, separated by ':', that file:// base models may lie in; empty allows none."
    )
    queue: str = Field("", description="Queue that jobs wait in and a worker serves.")
    stop_grace_seconds: float = Field(
        45.0, gt=0, description="Time a recipe gets to write its last checkpoint when it must stop."
    )
    preempt_after_seconds: float = Field(
        30.0,
        ge=0,
        description="How long a job of higher priority waits before a running one writes a checkpoint and makes room; "
        "0: running jobs never do.",
    )
    reconcile_seconds: float = Field(5.0, gt=0, description="Time between two rounds of the reconciler.")
    max_json_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1,
        description="Largest .json data set, which is read into memory as a whole; .jsonl, .csv and .parquet have no limit.",
    )
    keep_events_days: float = Field(7.0, gt=0, description="Days that events of finished jobs stay in the job store.")

    @field_validator("models_dir", "work_dir", "cache_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.resolve()  # a recipe runs in a directory of its own

    @property
    def allowed_roots(self) -> tuple[Path, ...]:
        """``model_roots`` as paths."""
        return tuple(Path(root) for root in self.model_roots.split(":") if root)
