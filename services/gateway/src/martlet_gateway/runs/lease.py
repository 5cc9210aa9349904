"""Many leases kept by one event loop: as ``martlet_core.lease``, without a thread for each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from martlet_core.errors import LeaseLost, MartletError, NotFound
from martlet_core.jobs import Claim, JobStore, LeaseSignal

log = logging.getLogger(__name__)

_MARGIN_SHARE = 0.2
_LONGEST_INTERVAL_SECONDS = 1.0


class RunLease:
    """Renews one claim's lease. It counts as lost when the store says so, or when no renewal succeeded for the lease less
    a margin.

    Args:
        store: where the lease is.
        claim: the hold on the run.
        lease_seconds: its length.
        on_change: called when the signal changes or the lease is lost.
    """

    def __init__(self, store: JobStore, claim: Claim, lease_seconds: float, on_change: Callable[[], None]) -> None:
        self._store = store
        self._claim = claim
        self._lease_seconds = lease_seconds
        self._on_change = on_change
        self._renewed_at = time.monotonic()
        self._lost = False
        self.signal = LeaseSignal.OK

    @property
    def lost(self) -> bool:
        """True once the run must be let go of."""
        return self._lost or time.monotonic() - self._renewed_at > self._lease_seconds * (1 - _MARGIN_SHARE)

    def mark_lost(self) -> None:
        """Let go: some other call was refused for its stale token."""
        self._lost = True
        self._on_change()

    async def keep(self) -> None:
        """Renew until the lease is lost; to be cancelled."""
        interval = min(self._lease_seconds / 3, _LONGEST_INTERVAL_SECONDS)
        while not self.lost:
            await asyncio.sleep(interval)
            await self._renew()
        self.mark_lost()

    async def _renew(self) -> None:
        sent_at = time.monotonic()
        job_id, token = self._claim.job.id, self._claim.token
        try:
            signal = await asyncio.to_thread(self._store.heartbeat, job_id, token, self._lease_seconds)
        except (LeaseLost, NotFound) as error:
            log.warning("Lost the lease of run %s: %s", job_id, error)
            self._lost = True
            return
        except MartletError as error:
            log.warning("The lease of run %s could not be renewed: %s", job_id, error)
            return
        self._renewed_at = sent_at
        if signal is not self.signal:
            self.signal = signal
            self._on_change()
