"""Keeps a claimed job's lease, and knows when it can no longer be relied on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from martlet_core.errors import LeaseLost, NotFound, Unavailable
from martlet_core.jobs import Claim, JobStore, LeaseSignal

logger = logging.getLogger(__name__)

#: Share of the lease that must be left when the work is killed for want of a renewal.
_MARGIN_SHARE = 0.2
#: Longest time between heartbeats: they also carry cancel and pause to the worker.
_LONGEST_INTERVAL_SECONDS = 1.0


class LeaseKeeper:
    """Renews one claim's lease from a thread of its own.

    The lease counts as lost when the store says so, or when no renewal succeeded for the lease less a margin: by
        the time another worker may
    claim the job, this one has let go.

    Args:
        store: where the lease is.
        claim: the hold on the job.
        lease_seconds: length of the lease.
        on_renewed: called after each renewal.
        on_change: called when the signal changes or the lease is lost.
        renew_also: renews what must be held together with the job; raises as ``JobStore.heartbeat`` does.
    """

    def __init__(
        self,
        store: JobStore,
        claim: Claim,
        lease_seconds: float,
        *,
        on_renewed: Callable[[], None],
        on_change: Callable[[], None],
        renew_also: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._claim = claim
        self._lease_seconds = lease_seconds
        self._interval = min(lease_seconds / 3, _LONGEST_INTERVAL_SECONDS)
        self._on_renewed = on_renewed
        self._on_change = on_change
        self._renew_also = renew_also
        self._renewed_at = time.monotonic()
        self._lost = threading.Event()
        self._stopped = threading.Event()
        self._signal = LeaseSignal.OK
        self._thread = threading.Thread(target=self._run, name=f"lease-{claim.job.id}", daemon=True)

    @property
    def trusted_seconds(self) -> float:
        """How long after a renewal the lease is relied on."""
        return self._lease_seconds * (1 - _MARGIN_SHARE)

    @property
    def lost(self) -> bool:
        """True once the job must be let go of; also when the keeper's own thread hangs in a call."""
        return self._lost.is_set() or time.monotonic() - self._renewed_at > self.trusted_seconds

    @property
    def signal(self) -> LeaseSignal:
        """What the last heartbeat answered."""
        return self._signal

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """Cease to renew; the lease itself stays as it is."""
        self._stopped.set()

    def mark_lost(self) -> None:
        """Let go: some other call was refused for its stale token."""
        self._lost.set()
        self._on_change()

    def renew(self) -> None:
        """Send one heartbeat now; does nothing once the lease is lost."""
        if self.lost:
            return
        sent_at = time.monotonic()
        try:
            signal = self._store.heartbeat(self._claim.job.id, self._claim.token, self._lease_seconds)
            if self._renew_also is not None:
                self._renew_also()
        except (LeaseLost, NotFound) as error:
            if not self._stopped.is_set():
                logger.warning("Lost the lease of job %s: %s", self._claim.job.id, error)
                self.mark_lost()
            return
        except Unavailable as error:
            logger.warning("The lease of job %s could not be renewed: %s", self._claim.job.id, error)
            if self.lost:
                self.mark_lost()
            return
        self._renewed_at = sent_at
        self._on_renewed()
        if signal is not self._signal:
            self._signal = signal
            self._on_change()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval) and not self.lost:
            self.renew()
        if self.lost and not self._stopped.is_set():
            self.mark_lost()
