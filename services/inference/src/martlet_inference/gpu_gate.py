"""The GPUs of a replica: waits until they are leased, keeps them for as long as the replica runs, and says what it waits for."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable, MutableMapping
from contextlib import suppress

from martlet_core.errors import FailedPrecondition, LeaseLost, MartletError
from martlet_core.gpu_devices import GpuMachine
from martlet_core.gpu_rules import describe_wait
from martlet_core.gpus import GpuLease, GpuLeases, GpuWait, GpuWish

log = logging.getLogger(__name__)

#: How often GPUs that others hold are asked for again.
POLL_SECONDS = 1.0


class GpuGate:
    """Holds a replica's GPU lease. Belongs to one event loop.

    The lease outlives an outage of the job store: while nobody can take the GPUs, the replica goes on. Once somebody has
    them, it lets its engine go and waits anew.

    Args:
        leases: the machine's.
        machine: which of its GPUs the replica may use.
        count: GPUs that it needs.
        share: of each one.
        lease_seconds: length of the lease.
        label: who the replica is, for people; asked when the line is joined.
        environ: where the variables go that say which GPUs CUDA shows; what is started later inherits them.

    Raises:
        FailedPrecondition: the machine has fewer GPUs than that (``NO_GPU``).
    """

    def __init__(
        self,
        leases: GpuLeases,
        machine: GpuMachine,
        *,
        count: int,
        share: float,
        lease_seconds: float,
        label: Callable[[], str],
        environ: MutableMapping[str, str] = os.environ,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        if count > len(machine.gpus):
            raise FailedPrecondition(
                f"MARTLET_GPU_COUNT is {count}, but this replica may use {len(machine.gpus)} GPUs of {machine.name}.",
                reason="NO_GPU",
            )
        self._leases = leases
        self._machine = machine
        self._count = count
        self._share = share
        self._lease_seconds = lease_seconds
        self._label = label
        self._environ = environ
        self._poll_seconds = poll_seconds
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._held = asyncio.Event()
        self._stopped = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._on_change: Callable[[], None] = lambda: None
        self._on_lost: Callable[[], None] = lambda: None
        self._failing = False
        self.reason = "waiting for a GPU"

    def start(self, *, on_change: Callable[[], None], on_lost: Callable[[], None]) -> None:
        """Get in line.

        Args:
            on_change: called when ``reason`` changes.
            on_lost: called when the GPUs went to someone else; whatever computes on them must end.
        """
        self._on_change, self._on_lost = on_change, on_lost
        self._task = asyncio.create_task(self._run(), name="gpu-lease")

    async def ready(self) -> None:
        """Wait until the GPUs are there."""
        await self._held.wait()

    async def stop(self) -> None:
        """Give them back, or leave the line."""
        self._stopped.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await asyncio.to_thread(self._leases.release, self._holder)
        except MartletError as exc:
            log.warning("the GPU lease is left to lapse", extra={"error": exc.message})

    async def _run(self) -> None:
        while (lease := await self._take()) is not None:
            self._environ.update(self._machine.environment(lease.gpus, lease.share))
            names = [self._machine.names[gpu] for gpu in lease.gpus]
            log.info("GPUs leased", extra={"gpus": names, "share": lease.share})
            self._set_reason("")
            self._held.set()
            if not await self._keep(lease):
                return
            self._held.clear()
            self._set_reason("waiting for a GPU")
            self._on_lost()

    async def _take(self) -> GpuLease | None:
        """The lease, once it is granted; None when stopped."""
        wish = GpuWish(self._holder, self._label(), self._machine.ids, self._count, self._share, lasting=True)
        while not self._stopped.is_set():
            answer = await self._call(lambda: self._leases.take(wish, self._lease_seconds))
            if isinstance(answer, GpuLease):
                return answer
            if isinstance(answer, GpuWait):
                self._set_reason(describe_wait(wish, answer, self._machine.names))
            await self._sleep(self._poll_seconds)
        return None

    async def _keep(self, lease: GpuLease) -> bool:
        """Renew a lease until it is lost (True) or the replica is stopped (False)."""
        while not self._stopped.is_set():
            try:
                await self._call(lambda: self._leases.renew(lease, self._lease_seconds))
            except LeaseLost as exc:
                log.error("the GPUs are lost", extra={"error": exc.message})
                return True
            await self._sleep(self._lease_seconds / 3)
        return False

    async def _call(self, call: Callable[[], GpuLease | GpuWait | None]) -> GpuLease | GpuWait | None:
        """Ask the store; None while it doesn't answer."""
        try:
            answer = await asyncio.to_thread(call)
        except LeaseLost:
            raise
        except MartletError as exc:
            if not self._failing:  # once an outage
                log.warning("the GPU leases can't be reached; trying again", extra={"error": exc.message})
            self._failing = True
            if not self._held.is_set():
                self._set_reason("waiting for a GPU: the job store, which has the leases, doesn't answer")
            return None
        self._failing = False
        return answer

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    def _set_reason(self, reason: str) -> None:
        if reason != self.reason:
            self.reason = reason
            if reason:
                log.info("the replica is %s", reason)
            self._on_change()
