"""In-memory GPU leases for tests: what ``RedisGpuLeases`` does, without a server. Both pass ``GpuLeaseSuite``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from martlet_core import gpu_rules as rules
from martlet_core.gpus import GpuLease, GpuTicket, GpuWait, GpuWish


class MemoryGpuLeases:
    """``GpuLeases`` in memory. Thread-safe.

    Args:
        clock: seconds since the epoch; give a clock of your own to let leases lapse without waiting.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._book = rules.GpuBook()
        self._lock = threading.Lock()

    def take(self, wish: GpuWish, lease_seconds: float) -> GpuLease | GpuWait:
        """See ``GpuLeases.take``."""
        with self._lock:
            return rules.take(self._book, wish, lease_seconds, self._clock())

    def renew(self, lease: GpuLease, lease_seconds: float) -> None:
        """See ``GpuLeases.renew``."""
        with self._lock:
            rules.renew(self._book, lease, lease_seconds, self._clock())

    def release(self, holder: str) -> None:
        """See ``GpuLeases.release``."""
        with self._lock:
            rules.release(self._book, holder)

    def leases(self) -> Sequence[GpuLease]:
        """See ``GpuLeases.leases``."""
        with self._lock:
            return rules.in_order(self._book, self._clock())[0]

    def tickets(self) -> Sequence[GpuTicket]:
        """See ``GpuLeases.tickets``."""
        with self._lock:
            return rules.in_order(self._book, self._clock())[1]

    def give_to(self, wish: GpuWish, lease_seconds: float) -> GpuLease | GpuWait:
        """Forget all leases and grant a wish, as if nobody else had asked for long."""
        with self._lock:
            self._book = rules.GpuBook()
            return rules.take(self._book, wish, lease_seconds, self._clock())

    def forget_all(self) -> None:
        """Lose everything, as a server that was emptied."""
        with self._lock:
            self._book = rules.GpuBook()
