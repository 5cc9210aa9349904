"""Keeps a job's process within its share of the GPUs that it sees. Imports no ML library: torch's module is given."""

from __future__ import annotations

import os
from typing import Protocol

from martlet_core.gpus import MEMORY_SHARE


class CudaMemory(Protocol):
    """What is needed of ``torch.cuda``."""

    def is_available(self) -> bool: ...

    def device_count(self) -> int: ...

    def set_per_process_memory_fraction(self, fraction: float, device: int) -> None: ...


def limit_memory(cuda: CudaMemory) -> float | None:
    """Let this process allocate no more of each visible GPU than its lease says; returns the share, None for no limit."""
    text = os.environ.get(MEMORY_SHARE)
    if not text or not cuda.is_available():
        return None
    for device in range(cuda.device_count()):
        cuda.set_per_process_memory_fraction(float(text), device)
    return float(text)
