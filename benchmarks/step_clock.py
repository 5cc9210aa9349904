"""Notes when optimizer steps end, on whichever side of a benchmark. Standard library only: it runs in the peers' environments too."""

from __future__ import annotations

import resource
import time

#: Steps that aren't timed: the first ones pay for caches and allocators.
WARM_STEPS = 2


class StepClock:
    """Notes when steps end."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        """A step has ended."""
        self._marks.append((time.perf_counter(), time.process_time()))

    def values(self, rows_per_step: float, tokens_per_row: float) -> dict[str, float]:
        """Rates over the timed steps, and the process's peak memory."""
        first, last = self._marks[WARM_STEPS - 1], self._marks[-1]
        rows = (len(self._marks) - WARM_STEPS) * rows_per_step
        return {
            "rows_per_second": rows / (last[0] - first[0]),
            "tokens_per_second": rows * tokens_per_row / (last[0] - first[0]),
            "tokens_per_cpu_second": rows * tokens_per_row / (last[1] - first[1]),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "steps": float(len(self._marks)),
        }
