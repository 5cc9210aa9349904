"""Settings of the processes that may use GPUs: workers and inference replicas."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from martlet_core.settings import CoreSettings

#: Share of a machine's only GPU that a replica takes unless the settings say otherwise.
SHARED_GPU = 0.35
_GPUS = re.compile(r"auto|none|simulated:[1-9]\d?|\d+(,\d+)*")


class GpuSettings(CoreSettings):
    """Which GPUs a process may use, and how large a part of them, from ``MARTLET_*`` variables."""

    gpus: str = Field(
        "auto",
        description="GPUs that this process may use: auto (all that it sees), their numbers (0,1) as nvidia-smi has "
        "them, none (no lease is taken and CUDA_VISIBLE_DEVICES stays as it is), or simulated:N for tests.",
    )
    gpu_host: str = Field("", description="What people call this machine in reasons and logs; default: its host name.")
    gpu_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of a GPU that an inference replica takes, and that jobs leave free; 0: 0.35 on a machine with "
        "one GPU, 1 on one with several.",
    )
    gpu_job_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of each of its GPUs that a job takes; 0: what gpu_share leaves, or a whole GPU where replicas "
        "take whole ones.",
    )

    @field_validator("gpus")
    @classmethod
    def _known_words(cls, text: str) -> str:
        if not _GPUS.fullmatch(text):
            raise ValueError(f"is {text!r}; must be auto, none, numbers such as 0,1, or simulated:N")
        return text

    def replica_share(self, gpu_count: int) -> float:
        """Share of each of its GPUs that a replica takes on a machine with that many."""
        return self.gpu_share or (SHARED_GPU if gpu_count == 1 else 1.0)

    def job_share(self, gpu_count: int) -> float:
        """Share of each of its GPUs that a job takes on a machine with that many."""
        replica = self.replica_share(gpu_count)
        return self.gpu_job_share or (round(1.0 - replica, 3) if replica < 1.0 else 1.0)
