"""Carries one run on: looks at its steps' jobs, begins what may begin, tells what changed. All of it may be repeated."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from martlet_core.errors import MartletError, NotFound
from martlet_core.jobs import Claim, Job

from martlet_gateway.runs.definition import StepDefinition
from martlet_gateway.runs.graph import Survey, survey
from martlet_gateway.runs.records import StepRecords, attempts_of, definition_of, run_id
from martlet_gateway.runs.references import Reference, substitute
from martlet_gateway.runs.reuse import ReuseIndex
from martlet_gateway.runs.stages import is_passing
from martlet_gateway.runs.status import StepState, StepStatus
from martlet_gateway.runs.steps import KINDS
from martlet_gateway.runs.steps.base import ImmediateStep, JobStep, StepPlace, StepWorld

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0


@dataclass(frozen=True)
class AdvanceOptions:
    """How a run is looked after, in seconds.

    Attributes:
        poll_seconds: longest time between two looks at a step's job, should its events not be heard.
        progress_seconds: shortest time between two looks for the sake of progress alone.
        rewatch_seconds: rest before a broken stream of events is opened again.
        missing_seconds: a job that its stage doesn't know fails its step after that: the stage may be restoring its jobs.
    """

    poll_seconds: float = 5.0
    progress_seconds: float = 1.0
    rewatch_seconds: float = 0.5
    missing_seconds: float = 600.0


class Advance:
    """One attempt at a run or a leg.

    Args:
        claim: the hold on it.
        world: what steps may use.
        records: what is written of the steps.
        reuse: earlier results.
        options: see ``AdvanceOptions``.
        wake: called when there is something to look at.
        may_begin: False once the lease is lost: nothing is begun then.
    """

    def __init__(
        self,
        claim: Claim,
        world: StepWorld,
        records: StepRecords,
        reuse: ReuseIndex,
        options: AdvanceOptions,
        *,
        wake: Callable[[], None],
        may_begin: Callable[[], bool],
    ) -> None:
        self.job: Job = claim.job
        self.run = run_id(claim.job)
        self.definition = definition_of(claim.job)
        self._attempts = attempts_of(claim.job)
        self._world = world
        self._records = records
        self._reuse = reuse
        self._options = options
        self._wake = wake
        self._may_begin = may_begin
        self._known: dict[str, StepStatus] = {}
        self._notes: dict[str, str] = {}
        self._not_before: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self._looked_at: dict[str, float] = {}
        self._missing_since: dict[str, float] = {}
        self._dirty: set[str] = set()
        self._watchers: dict[str, asyncio.Task[None]] = {}

    async def load(self) -> None:
        """Read what is written of the steps."""
        self._known = await asyncio.to_thread(self._records.known, self.run, self.definition, self._attempts)
        self._dirty.update(survey(self.definition, self._known).active)

    def close(self) -> None:
        """Stop watching."""
        for task in self._watchers.values():
            task.cancel()

    def survey(self) -> Survey:
        """What follows from what is known, with the notes of steps that wait."""
        found = survey(self.definition, self._known)
        statuses = {
            step: replace(status, note=self._notes[step])
            if step in self._notes and not status.state.is_final
            else status
            for step, status in found.statuses.items()
        }
        return replace(found, statuses=statuses)

    def rest_seconds(self) -> float:
        """How long may be waited before the next look, if nothing is heard."""
        now = time.monotonic()
        due = [t - now for t in self._not_before.values()]
        if self._dirty:
            due.append(self._options.progress_seconds)
        return max(0.01, min([self._options.poll_seconds, *due]))

    async def look(self) -> None:
        """See how the steps that have begun are getting on."""
        now = time.monotonic()
        self._not_before = {step: t for step, t in self._not_before.items() if t > now}
        active = survey(self.definition, self._known).active
        due = [
            step
            for step in active
            if step not in self._not_before
            and (step in self._dirty or now - self._looked_at.get(step, 0.0) >= self._options.poll_seconds)
        ]
        await asyncio.gather(*(self._look(self.definition.step(step)) for step in due))

    async def begin(self) -> None:
        """Begin what may begin, until nothing more may."""
        while True:
            ready = [s for s in survey(self.definition, self._known).ready if s.id not in self._not_before]
            if not ready or not self._may_begin():
                return
            await asyncio.gather(*(self._begin(step) for step in ready))

    async def steer(self, verb: str, wanted: Callable[[StepStatus, JobStep], bool]) -> None:
        """``Cancel``, ``Pause`` or ``Resume`` the jobs of active steps for which ``wanted``."""
        for step_id in survey(self.definition, self._known).active:
            kind, status = KINDS[self.definition.step(step_id).kind], self._known[step_id]
            if not isinstance(kind, JobStep) or not status.job or not wanted(status, kind):
                continue
            try:
                await kind.steer(self._world, verb, status.job)
            except MartletError as error:
                if is_passing(error):
                    self._notes[step_id] = f"can't be told to {verb.lower()}: {error.message}"
            self._dirty.add(step_id)

    # One step

    async def _begin(self, step: StepDefinition) -> None:
        kind, place = KINDS[step.kind], self._place(step)
        try:
            options = self._options_of(step)
            if isinstance(kind, ImmediateStep):
                status = await kind.perform(self._world, place, options, self._known)
            else:
                assert isinstance(kind, JobStep)
                status = await self._reuse.find(kind, place, options) if step.reuse else None
                if status is None:
                    job = await kind.create(self._world, kind.draft(place, options))
                    status = StepStatus(StepState.QUEUED, job=job, start_time=time.time())
            status = replace(status, attempt=place.attempt)
            await asyncio.to_thread(self._records.keep, self.run, step.id, status)
        except MartletError as error:
            await self._refused(step, error)
            return
        self._settled(step.id)
        self._known[step.id] = status
        if isinstance(kind, JobStep) and not status.state.is_final:
            self._dirty.add(step.id)
            self._listen(step.id, kind, status.job)

    async def _refused(self, step: StepDefinition, error: MartletError) -> None:
        """A step could not begin: it waits for better times, or it has failed."""
        if is_passing(error):
            self._later(step.id, f"waits: {error.message}")
            return
        now = time.time()
        attempt = self._attempts.get(step.id, 1)
        await self._ended(
            step.id,
            StepStatus(StepState.FAILED, attempt=attempt, start_time=now, end_time=now, error=error.to_dict()),
        )

    async def _look(self, step: StepDefinition) -> None:
        kind, before = KINDS[step.kind], self._known[step.id]
        assert isinstance(kind, JobStep)
        self._dirty.discard(step.id)
        self._looked_at[step.id] = time.monotonic()
        try:
            seen = await kind.look(self._world, before.job)
        except NotFound as error:
            since = self._missing_since.setdefault(step.id, time.monotonic())
            if time.monotonic() - since < self._options.missing_seconds:
                self._later(step.id, "its stage doesn't know its job at the moment", longest=2.0)
                return
            seen = StepStatus(StepState.FAILED, job=before.job, end_time=time.time(), error=error.to_dict())
        except MartletError as error:
            self._later(step.id, f"can't be looked at: {error.message}", longest=2.0)
            return
        self._missing_since.pop(step.id, None)
        self._settled(step.id)
        status = replace(seen, attempt=before.attempt, reused=before.reused, start_time=before.start_time)
        if status.state.is_final:
            await self._ended(step.id, status)
            if status.state is StepState.SUCCEEDED:
                await self._reuse.note(kind, self._place(step), self._options_of(step), status)
            return
        self._known[step.id] = status
        self._listen(step.id, kind, status.job)

    async def _ended(self, step_id: str, status: StepStatus) -> None:
        try:
            await asyncio.to_thread(self._records.keep, self.run, step_id, status)
        except MartletError as error:  # what isn't written isn't believed: descendants begin once it is
            self._later(step_id, f"its end can't be written: {error.message}")
            self._dirty.add(step_id)
            return
        self._settled(step_id)
        self._known[step_id] = status
        watcher = self._watchers.pop(step_id, None)
        if watcher is not None:
            watcher.cancel()

    def _place(self, step: StepDefinition) -> StepPlace:
        return StepPlace(self.run, step.id, self._attempts.get(step.id, 1), self.job.tenant)

    def _options_of(self, step: StepDefinition) -> dict[str, Any]:
        def find(reference: Reference) -> str:
            return self._known[reference.source].outputs.get(reference.name, "")

        return substitute(dict(step.options), find)

    def _later(self, step_id: str, note: str, longest: float = _LONGEST_PAUSE_SECONDS) -> None:
        """Try again after a pause that doubles."""
        pause = min(self._pauses.get(step_id, _FIRST_PAUSE_SECONDS), longest)
        self._pauses[step_id] = pause * 2
        self._not_before[step_id] = time.monotonic() + pause
        self._notes[step_id] = note
        log.info("Step %s of run %s: %s", step_id, self.run, note)

    def _settled(self, step_id: str) -> None:
        for memory in (self._notes, self._not_before, self._pauses):
            memory.pop(step_id, None)

    # Events as a bell

    def _listen(self, step_id: str, kind: JobStep, job: str) -> None:
        if step_id not in self._watchers:
            self._watchers[step_id] = asyncio.create_task(
                self._hear(step_id, kind, job), name=f"watch-{self.run}-{step_id}"
            )

    async def _hear(self, step_id: str, kind: JobStep, job: str) -> None:
        cursor = ""
        while True:
            try:
                async for event in kind.watch(self._world, job, cursor):
                    cursor = event.cursor
                    self._dirty.add(step_id)
                    if event.HasField("state_change"):
                        self._wake()
            except MartletError as error:
                log.info("The events of step %s of run %s broke off: %s", step_id, self.run, error.message)
            self._dirty.add(step_id)
            self._wake()
            await asyncio.sleep(self._options.rewatch_seconds)
