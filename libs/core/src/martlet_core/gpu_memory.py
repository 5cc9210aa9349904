"""Keeps a job's process within its share of a GPU. Imports no ML library: torch's module is given."""

from __future__ import annotations

import os
from typing import Protocol

from martlet_core.gpus import MEMORY_SHARE


class CudaMemory(Protocol):
    """What is needed of ``torch.cuda``."""

    def is_available(self) -> bool: ...

    def set_per_process_memory_fraction(self, fraction: float, device: int) -> None: ...


def limit_memory(cuda: CudaMemory, device: int = 0) -> float | None:
    """Let this process allocate no more of a GPU than its lease says; returns the share, None where there is no limit.

    Args:
        cuda: the module ``torch.cuda``.
        device: number among those that the process sees. Others aren't touched: each would take memory for a context.
    """
    text = os.environ.get(MEMORY_SHARE)
    if not text or not cuda.is_available():
        return None
    cuda.set_per_process_memory_fraction(float(text), device)
    return float(text)
