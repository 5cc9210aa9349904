"""Where the trainer is deployed."""

from __future__ import annotations

from pathlib import Path

from martlet_core.stage_settings import StageSettings
from pydantic import Field, field_validator

from martlet_trainer.trackers import parse_offered


class TrainerSettings(StageSettings):
    """Settings of ``serve``, ``work`` and ``track``, from ``MARTLET_*`` variables."""

    grpc_address: str = Field(
        "127.0.0.1:50052", description="Address this service listens on for gRPC; port 0 picks a free one."
    )
    queue: str = Field("trainer", description="Queue that jobs wait in and a worker serves.")
    allowed_reward_services: str = Field(
        "",
        description="Reward services that jobs may name, as URL or host:port, separated by spaces; empty allows none.",
    )
    gateway_url: str = Field(
        "",
        description="The gateway's REST address, ending in /v1, where replicas are asked for answers of models in training; empty: trainings"
        " can't have them. For work.",
    )
    trackers: str = Field(
        "", description="Trackers that jobs may ask for, such as tensorboard,mlflow; the same for serve and track."
    )
    tensorboard_dir: Path = Field(
        Path(".martlet/tensorboard"), description="Where track writes TensorBoard's files: TENANT/PROJECT/RUN."
    )
    tracker_processes: int = Field(
        32, ge=1, description="Processes of trackers at a time, one a job and tracker; further ones wait."
    )

    @field_validator("tensorboard_dir")
    @classmethod
    def _whole(cls, path: Path) -> Path:
        return path.resolve()  # a tracker's process has a directory of its own

    @property
    def offered_trackers(self) -> tuple[str, ...]:
        """``trackers`` as kinds. InvalidArgument if one isn't known."""
        return parse_offered(self.trackers)

    @property
    def allowed_services(self) -> tuple[str, ...]:
        """``allowed_reward_services`` one by one."""
        return tuple(self.allowed_reward_services.split())
