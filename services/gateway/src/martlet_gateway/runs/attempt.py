"""One attempt at a run, from its claim to its end: advances it, keeps its lease, hears what is wished of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from martlet_core.errors import LeaseLost, MartletError, Unavailable
from martlet_core.jobs import Claim, Job, JobEvent, JobState, LeaseSignal
from martlet_core.rpc.context import CallContext, set_call_context
from martlet_core.stores import Stores

from martlet_gateway.runs.advance import Advance, AdvanceOptions
from martlet_gateway.runs.graph import Survey
from martlet_gateway.runs.lease import RunLease
from martlet_gateway.runs.records import StepRecords, picture, pictured
from martlet_gateway.runs.reuse import ReuseIndex
from martlet_gateway.runs.status import StepState, StepStatus
from martlet_gateway.runs.steps.base import StepWorld

log = logging.getLogger(__name__)

_OUTAGE_SECONDS = 1.0
_LEVELS = {StepState.FAILED: "error", StepState.CANCELLED: "warn", StepState.SKIPPED: "warn"}


@dataclass(frozen=True)
class RunParts:
    """What attempts share."""

    stores: Stores
    world: StepWorld
    records: StepRecords
    reuse: ReuseIndex
    advance: AdvanceOptions
    lease_seconds: float


class RunAttempt:
    """One attempt at a run or a leg.

    Args:
        parts: what attempts share.
        claim: the hold on it.
        stopping: set when the worker is to go.
    """

    def __init__(self, parts: RunParts, claim: Claim, stopping: asyncio.Event) -> None:
        self._jobs = parts.stores.jobs
        self._claim = claim
        self._stopping = stopping
        self._changed = asyncio.Event()
        self._lease = RunLease(self._jobs, claim, parts.lease_seconds, self._changed.set)
        self._advance = Advance(
            claim,
            parts.world,
            parts.records,
            parts.reuse,
            parts.advance,
            wake=self._changed.set,
            may_begin=lambda: not self._lease.lost,
        )
        self._told: Mapping[str, StepStatus] = pictured(claim.job)
        self._pausing = False

    def wake(self) -> None:
        """Look now."""
        self._changed.set()

    async def run(self) -> Job | None:
        """Carry the run on until it is over, paused, given back or lost; returns its record, None if the lease was lost."""
        set_call_context(CallContext(tenant=self._claim.job.tenant, request_id=f"run-{self._advance.run}"))
        keeper = asyncio.create_task(self._lease.keep(), name=f"lease-{self._claim.job.id}")
        try:
            while not self._lease.lost:
                try:
                    job = await self._go_on()
                except LeaseLost:
                    self._lease.mark_lost()
                    return None
                except MartletError as error:  # a store is away: nothing is lost, and the lease says how long to try
                    log.warning("Run %s waits: %s", self._claim.job.id, error)
                    await asyncio.sleep(_OUTAGE_SECONDS)
                    continue
                if job is not None:
                    return job
            return None
        finally:
            keeper.cancel()
            self._advance.close()

    async def _go_on(self) -> Job | None:
        await self._advance.load()
        while not self._lease.lost:
            self._changed.clear()
            if self._stopping.is_set():
                return await self._finish(JobState.QUEUED)
            job = await self._round()
            if job is not None:
                return job
            try:
                async with asyncio.timeout(self._advance.rest_seconds()):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return None

    async def _round(self) -> Job | None:
        """One look at everything; the record if the attempt ended."""
        await self._advance.look()
        signal = self._lease.signal
        if signal is LeaseSignal.CANCEL:
            await self._advance.steer("Cancel", lambda status, _: True)
            await self._advance.look()
            survey = await self._tell()
            return None if survey.active else await self._finish(JobState.CANCELLED)
        if signal is LeaseSignal.PAUSE:
            return await self._pause()
        if self._pausing:  # the pause was taken back
            self._pausing = False
            await self._advance.steer("Resume", lambda status, kind: kind.can_pause)
        await self._advance.begin()
        survey = await self._tell()
        if not survey.is_over:
            return None
        if survey.succeeded:
            return await self._finish(JobState.SUCCEEDED)
        return await self._finish(JobState.FAILED, failure(survey))

    async def _pause(self) -> Job | None:
        """Pause what can be paused; the run is paused once nothing is under way any more."""
        self._pausing = True
        await self._advance.steer("Pause", lambda status, kind: kind.can_pause and status.state is not StepState.PAUSED)
        await self._advance.look()
        survey = await self._tell()
        moving = [step for step in survey.active if survey.statuses[step].state is not StepState.PAUSED]
        return None if moving else await self._finish(JobState.PAUSED)

    async def _tell(self) -> Survey:
        """Bring the run's record up to date, and say what changed."""
        survey = self._advance.survey()
        if survey.statuses == self._told:
            return survey
        done = sum(status.state.is_final for status in survey.statuses.values())
        progress = {"step": done, "total_steps": len(survey.statuses), "phase": ", ".join(survey.active)}
        job_id, token = self._claim.job.id, self._claim.token
        await asyncio.to_thread(
            lambda: self._jobs.update(job_id, token, progress=progress, result=picture(survey.statuses))
        )
        for step, status in survey.statuses.items():
            before = self._told.get(step, StepStatus())
            if before.state is not status.state:
                await asyncio.to_thread(self._jobs.append_event, job_id, self._event(step, status))
        self._told = survey.statuses
        return survey

    def _event(self, step: str, status: StepStatus) -> JobEvent:
        words = [f"{step}: {status.state.value.lower()}"]
        words += [status.job] if status.job and not status.state.is_final else []
        words += ["reused"] if status.reused else []
        words += [status.summary] if status.summary else []
        words += [str((status.error or {}).get("message", ""))] if status.error else []
        words += [status.note] if status.note and status.state in (StepState.SKIPPED, StepState.SUCCEEDED) else []
        level = _LEVELS.get(status.state, "info")
        return JobEvent("log", ", ".join(words), level, attempt=self._claim.token, data={"source": step})

    async def _finish(self, state: JobState, error: Mapping[str, Any] | None = None) -> Job:
        """End the attempt. It is tried again while the store doesn't answer and the lease holds."""
        while True:
            try:
                return await asyncio.to_thread(
                    lambda: self._jobs.finish(self._claim.job.id, self._claim.token, state, error=error)
                )
            except Unavailable:
                if self._lease.lost:
                    raise
                await asyncio.sleep(_OUTAGE_SECONDS)


def failure(survey: Survey) -> dict[str, Any]:
    """The error of a run that can't go on: that of the first step that stopped, and how many more there are."""
    first = survey.stopped[0]
    status = survey.statuses[first]
    error = dict(status.error or {"code": "ABORTED", "message": "its job was cancelled.", "reason": "STEP_CANCELLED"})
    others = [step for step in survey.stopped if step != first]
    skipped = [step for step, status in survey.statuses.items() if status.state is StepState.SKIPPED]
    text = f"Step {first}: {error.get('message', '')}"
    text += f" Also stopped: {', '.join(others)}." if others else ""
    text += f" Not done for want of it: {', '.join(skipped)}." if skipped else ""
    metadata = {**(error.get("metadata") or {}), "step": first}
    return {**error, "message": text, "metadata": metadata, "violations": error.get("violations", [])}
