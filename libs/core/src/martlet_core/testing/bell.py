"""A bell for tests: remembers its rings and can pass them on."""

from __future__ import annotations

from collections.abc import Callable


class MemoryBell:
    """``Bell`` in memory.

    Args:
        on_ring: called with each job's id, in the ringing thread.

    Attributes:
        rings: (queue, job id) of every ring, oldest first.
    """

    def __init__(self, on_ring: Callable[[str], None] | None = None) -> None:
        self._on_ring = on_ring
        self.rings: list[tuple[str, str]] = []

    def ring(self, queue: str, job_id: str) -> None:
        """See ``Bell.ring``."""
        self.rings.append((queue, job_id))
        if self._on_ring is not None:
            self._on_ring(job_id)
