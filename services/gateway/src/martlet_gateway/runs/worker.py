"""The runs' worker: one event loop that holds many runs at once, each under its own lease.

``python -m martlet_gateway work`` runs it beside Celery, which hears the bell, and the reconciler of the runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field

from martlet_core.alive import touching
from martlet_core.errors import FailedPrecondition, MartletError, NotFound
from martlet_core.job_bus import Bell, CeleryBell, run_celery_worker
from martlet_core.jobs import Claim, Job, JobState
from martlet_core.reconciler import Reconciler, ReconcilerOptions
from martlet_core.rpc.context import CallContext, set_call_context
from martlet_core.stores import Stores, open_stores

from martlet_gateway.clients import Stages
from martlet_gateway.runs.advance import AdvanceOptions
from martlet_gateway.runs.attempt import RunAttempt, RunParts
from martlet_gateway.runs.records import STAGE, StepRecords, attempts_of, definition_of, run_id
from martlet_gateway.runs.reuse import ReuseIndex
from martlet_gateway.runs.steps import KINDS
from martlet_gateway.runs.steps.base import JobStep, StepWorld
from martlet_gateway.runs.world import make_world
from martlet_gateway.settings import GatewaySettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunWorkerOptions:
    """How the worker behaves; times are in seconds.

    Attributes:
        lease_seconds: of each run.
        idle_poll_seconds: how often it looks into the queue by itself: a bell may be lost.
        most_runs: held at once.
        sweep_seconds: between two looks at runs that were cancelled lately, for jobs of theirs that still run.
        cancelled_seconds: how long ago is lately.
        advance: how runs are looked after.
    """

    lease_seconds: float = 30.0
    idle_poll_seconds: float = 1.0
    most_runs: int = 256
    sweep_seconds: float = 15.0
    cancelled_seconds: float = 300.0
    advance: AdvanceOptions = field(default_factory=AdvanceOptions)


class RunWorker:
    """Carries out runs.

    Args:
        stores: where everything is kept.
        bell: rung when a run is given back.
        world: what steps may use.
        options: see ``RunWorkerOptions``.
    """

    def __init__(self, stores: Stores, bell: Bell, world: StepWorld, options: RunWorkerOptions) -> None:
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._stores = stores
        self._bell = bell
        self._world = world
        self._options = options
        self._records = StepRecords(stores.objects)
        reuse = ReuseIndex(world, stores.objects, stores.artifacts)
        self._parts = RunParts(stores, world, self._records, reuse, options.advance, options.lease_seconds)
        self._attempts: dict[str, tuple[RunAttempt, asyncio.Task[None]]] = {}
        self._rung = asyncio.Event()
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def on_ring(self, job_id: str) -> None:
        """A run waits, it is said. From any thread; returns at once."""
        self._from_outside(self._rung.set)

    def stop(self) -> None:
        """Give all runs back and end. From any thread; returns at once."""
        self._from_outside(self._stop)

    async def serve(self) -> None:
        """Claim and carry out runs until ``stop``."""
        self._loop = asyncio.get_running_loop()
        sweeper = asyncio.create_task(self._sweep(), name="sweep-cancelled-runs")
        try:
            while not self._stopping.is_set():
                self._rung.clear()
                await self._claim_all()
                try:
                    async with asyncio.timeout(self._options.idle_poll_seconds):
                        await self._rung.wait()
                except TimeoutError:
                    continue
        finally:
            sweeper.cancel()
            tasks = [task for _, task in self._attempts.values()]
            for attempt, task in self._attempts.values():
                if self._stopping.is_set():
                    attempt.wake()
                else:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _from_outside(self, call: object) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call)  # type: ignore[arg-type]

    def _stop(self) -> None:
        self._stopping.set()
        self._rung.set()

    async def _claim_all(self) -> None:
        while len(self._attempts) < self._options.most_runs and not self._stopping.is_set():
            try:
                claim = await asyncio.to_thread(
                    self._stores.jobs.claim_next, STAGE, self.owner, self._options.lease_seconds
                )
            except MartletError as error:
                log.warning("No run could be claimed: %s", error)
                return
            if claim is None:
                return
            log.info("Attempt %s at run %s begins.", claim.token, claim.job.id)
            attempt = RunAttempt(self._parts, claim, self._stopping)
            task = asyncio.create_task(self._carry_out(attempt, claim), name=f"run-{claim.job.id}")
            self._attempts[claim.job.id] = (attempt, task)

    async def _carry_out(self, attempt: RunAttempt, claim: Claim) -> None:
        job: Job | None = None
        try:
            job = await attempt.run()
        except Exception:  # the lease lapses and another attempt is made; the other runs must go on
            log.exception("Run %s was left.", claim.job.id)
        finally:
            self._attempts.pop(claim.job.id, None)
        log.info("Attempt %s at run %s ended: %s.", claim.token, claim.job.id, job.state.value if job else "lost")
        if job is not None and job.state is JobState.QUEUED:
            await asyncio.to_thread(self._bell.ring, job.queue, job.id)

    async def _sweep(self) -> None:
        """Cancel what still runs of cancelled runs: their worker may have died before it could."""
        while True:
            try:
                page = await asyncio.to_thread(
                    self._stores.jobs.list, stage=STAGE, states=[JobState.CANCELLED], page_size=50
                )
                for job in page.jobs:
                    if time.time() - job.update_time < self._options.cancelled_seconds:
                        await cancel_steps(self._world, self._records, job)
            except MartletError as error:
                log.warning("Runs that were cancelled can't be looked at: %s", error)
            await asyncio.sleep(self._options.sweep_seconds)


async def cancel_steps(world: StepWorld, records: StepRecords, job: Job) -> None:
    """Cancel the jobs of a run's steps that aren't over. Unavailable if a stage doesn't answer."""
    await steer_steps(world, records, job, "Cancel")


async def steer_steps(world: StepWorld, records: StepRecords, job: Job, verb: str) -> None:
    """``Cancel`` or ``Resume`` the jobs of a run's steps that aren't over; those that can't be are left as they are.

    Raises:
        Unavailable: a stage or the store doesn't answer.
    """
    set_call_context(CallContext(tenant=job.tenant, request_id=f"run-{run_id(job)}"))
    definition = definition_of(job)
    known = await asyncio.to_thread(records.known, run_id(job), definition, attempts_of(job))
    for step, status in known.items():
        kind = KINDS[definition.step(step).kind]
        if status.state.is_final or not status.job or not isinstance(kind, JobStep):
            continue
        if verb == "Resume" and not kind.can_pause:
            continue
        try:
            await kind.steer(world, verb, status.job)
        except (FailedPrecondition, NotFound):
            continue


def work(settings: GatewaySettings) -> int:
    """Serve the runs until SIGTERM; returns the exit code. Call it in the main thread."""
    stores = open_stores(settings)
    bell = CeleryBell(settings.redis_url)
    failed: list[BaseException] = []
    started = threading.Event()
    holder: list[RunWorker] = []

    async def serve() -> None:
        stages = Stages.connect(settings)
        options = RunWorkerOptions(lease_seconds=settings.lease_seconds)
        holder.append(RunWorker(stores, bell, make_world(stores, stages), options))
        started.set()
        try:
            await holder[0].serve()
        finally:
            await stages.close()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001  # told of by the main thread
            failed.append(error)
            started.set()

    thread = threading.Thread(target=run, name="runs")
    thread.start()
    started.wait()
    if failed:
        raise failed[0]
    worker = holder[0]
    options = ReconcilerOptions(interval_seconds=settings.reconcile_seconds)
    reconciler = Reconciler(STAGE, stores, bell, [], owner=worker.owner, options=options)
    reconciler.start()
    log.info("working on runs")
    with touching(settings.alive_file, thread.is_alive):
        exit_code = run_celery_worker(
            settings.redis_url, STAGE, worker.owner, on_ring=worker.on_ring, on_stop=worker.stop
        )
    worker.stop()
    thread.join()
    reconciler.stop()
    bell.close()
    return exit_code or (1 if failed else 0)
