"""Where the trainer is deployed."""

from __future__ import annotations

from martlet_core.stage_settings import StageSettings
from pydantic import Field


class TrainerSettings(StageSettings):
    """Settings of ``serve`` and ``work``, from ``MARTLET_*`` variables."""

    grpc_address: str = Field(
        "127.0.0.1:50052", description="Address this service listens on for gRPC; port 0 picks a free one."
    )
    queue: str = Field("trainer", description="Queue that jobs wait in and a worker serves.")
    allowed_reward_services: str = Field(
        "",
        description="Reward services that jobs may name, as URL or host:port, separated by spaces; empty allows none.",
    )

    @property
    def allowed_services(self) -> tuple[str, ...]:
        """``allowed_reward_services`` one by one."""
        return tuple(self.allowed_reward_services.split())
