"""What the gateway does with runs on behalf of its callers: check and create, look at, steer and watch them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from martlet_core.errors import FailedPrecondition, InvalidArgument, MartletError, NotFound
from martlet_core.job_bus import Bell
from martlet_core.job_service import JobService, NewJob, check_page_size
from martlet_core.jobs import Job, JobEvent, JobState
from martlet_core.stores import Stores

from martlet_gateway.runs.convert import RunView, no_such_run
from martlet_gateway.runs.definition import RunDefinition, StepDefinition
from martlet_gateway.runs.graph import attempts_after
from martlet_gateway.runs.marks import Document, Mistakes
from martlet_gateway.runs.records import LEG, RUN, STAGE, StepRecords, attempts_of, steps_of
from martlet_gateway.runs.references import references
from martlet_gateway.runs.spec import parse_run
from martlet_gateway.runs.stages import is_passing
from martlet_gateway.runs.steps import KINDS
from martlet_gateway.runs.steps.base import JobStep, StepPlace, StepWorld
from martlet_gateway.runs.steps.deploy import DeployStep
from martlet_gateway.runs.steps.gate import GateStep, conditions, matching, unknown_metric
from martlet_gateway.runs.worker import cancel_steps, steer_steps

#: Of a run's worker: it may crash now and then over days, but a run that crashes it each time must end.
_MAX_ATTEMPTS = 100
_MAX_LEGS = 1000


class RunService:
    """Runs of all tenants.

    Args:
        stores: where everything is kept.
        bell: wakes the runs' worker.
        world: what steps may use: stages check them, and steering reaches their jobs.
    """

    def __init__(self, stores: Stores, bell: Bell, world: StepWorld) -> None:
        self._stores = stores
        self._jobs = JobService(STAGE, stores, bell)
        self._world = world
        self._records = StepRecords(stores.objects)

    async def create(
        self,
        tenant: str,
        *,
        source: str,
        inputs: Mapping[str, Any],
        reuse: bool | None = None,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
        validate_only: bool = False,
    ) -> RunView:
        """Check a definition, ask the stages about what is known of its steps, and queue the run.

        Raises:
            InvalidArgument: every mistake, with its line.
            AlreadyExists: the request id was used for another request.
            Unavailable: a store, or a stage that would have to check a step, doesn't answer.
        """
        definition, document = await asyncio.to_thread(parse_run, source, inputs, reuse)
        new = NewJob(
            kind=RUN,
            queue=STAGE,
            spec={"source": source, "inputs": dict(inputs), "reuse": reuse, "definition": definition.to_dict()},
            display_name=display_name or definition.name,
            labels=dict(labels or {}),
            request_id=request_id,
            max_attempts=_MAX_ATTEMPTS,
        )
        draft = self._jobs.draft(tenant, new)
        await self._ask_stages(tenant, definition, document)
        job = draft if validate_only else await self._jobs.create(tenant, new)
        return RunView(job, job, 0, steps_of(job, _NO_RECORDS))

    async def get(self, tenant: str, run: str) -> RunView:
        """A run with its steps. NotFound if there is none, or it is another tenant's."""
        first = await self._first(tenant, run)
        return await self._view(first)

    async def list(
        self, tenant: str, *, states: Sequence[JobState] = (), page_size: int = 0, page_token: str = ""
    ) -> tuple[Sequence[RunView], str]:
        """Runs of the tenant, newest first, and the token of the next page."""
        size = check_page_size(page_size, default=20)
        found: list[RunView] = []
        token = page_token
        while True:
            page = await self._jobs.list(tenant, kind=RUN, page_size=size, page_token=token)
            for index, job in enumerate(page.jobs):
                view = await self._view(job)
                if states and view.state not in states:
                    continue
                found.append(view)
                if len(found) == size:
                    more = index + 1 < len(page.jobs) or bool(page.next_page_token)
                    return found, job.id if more else ""
            token = page.next_page_token
            if not token:
                return found, ""

    async def cancel(self, tenant: str, run: str) -> RunView:
        """Stop a run and the jobs of its steps. FailedPrecondition when it is over; a failed run's jobs are over, too."""
        first = await self._first(tenant, run)
        leg, _ = await self._newest(first)
        job = await self._jobs.cancel(tenant, leg.id, kind=leg.kind)
        if job.state is JobState.CANCELLED:  # no worker had it, so none stops its steps
            await cancel_steps(self._world, self._records, job)
        return await self._view(first)

    async def pause(self, tenant: str, run: str) -> RunView:
        """Pause the jobs of a run's steps, and begin none. FailedPrecondition when it is over."""
        first = await self._first(tenant, run)
        leg, _ = await self._newest(first)
        await self._jobs.pause(tenant, leg.id, kind=leg.kind)
        return await self._view(first)

    async def resume(self, tenant: str, run: str) -> RunView:
        """Let a paused run go on; have a failed one try its failed steps again, in a new leg.

        Raises:
            FailedPrecondition: it is neither paused nor failed.
            Unavailable: a stage doesn't answer; calling again is safe.
        """
        first = await self._first(tenant, run)
        leg, number = await self._newest(first)
        if leg.state is JobState.FAILED:
            await self._begin_leg(first, leg, number + 1)
        else:
            if leg.state.is_final:
                raise FailedPrecondition(
                    f"Run {run} is {leg.state.value}; only a run that is PAUSED, PAUSING or FAILED can be resumed.",
                    reason="ILLEGAL_TRANSITION",
                    metadata={"run": run, "state": leg.state.value},
                )
            if leg.state in (JobState.PAUSED, JobState.PAUSING):
                await steer_steps(self._world, self._records, leg, "Resume")
            await self._jobs.resume(tenant, leg.id, kind=leg.kind)
        return await self._view(first)

    async def events(
        self, tenant: str, run: str, *, page_size: int = 0, page_token: str = ""
    ) -> tuple[Sequence[JobEvent], str]:
        """Past events of all legs behind a cursor, oldest first, and the cursor to go on from (empty: none for now)."""
        size = check_page_size(page_size, default=100)
        first = await self._first(tenant, run)
        number, cursor = _place(page_token)
        found: list[JobEvent] = []
        for leg in await self._legs(first, number):
            rest = size - len(found)
            page, _ = await self._jobs.events(tenant, leg.id, kind=leg.kind, page_size=rest, page_token=cursor)
            found += [_of_leg(event, number) for event in page]
            if len(found) == size:
                return found, found[-1].cursor
            number, cursor = number + 1, ""
        return found, ""

    async def watch(self, tenant: str, run: str, *, after: str = "") -> AsyncGenerator[JobEvent]:
        """Events behind a cursor as they come, leg by leg; ends when the newest leg is over and all was given."""
        first = await self._first(tenant, run)
        number, cursor = _place(after)
        while True:
            legs = await self._legs(first, number)
            if not legs:
                return
            async with aclosing(self._jobs.watch(tenant, legs[0].id, kind=legs[0].kind, after=cursor)) as events:
                async for event in events:
                    yield _of_leg(event, number)
            number, cursor = number + 1, ""

    # Legs

    async def _first(self, tenant: str, run: str) -> Job:
        try:
            return await self._jobs.get(tenant, run, kind=RUN)
        except NotFound as error:
            raise no_such_run(run) from error

    async def _legs(self, first: Job, start: int) -> list[Job]:
        """The run's own job and its legs, from a number on."""
        legs = [first] if start == 0 else []
        for number in range(max(start, 1), _MAX_LEGS):
            try:
                legs.append(await self._jobs.get(first.tenant, _leg_id(first.id, number), kind=LEG))
            except NotFound:
                break
        return legs

    async def _newest(self, first: Job) -> tuple[Job, int]:
        if first.state is not JobState.FAILED:  # only a failed run has legs
            return first, 0
        legs = await self._legs(first, 0)
        return legs[-1], len(legs) - 1

    async def _view(self, first: Job) -> RunView:
        first = await self._jobs.get(first.tenant, first.id, kind=RUN)
        leg, number = await self._newest(first)
        return RunView(first, leg, number, await asyncio.to_thread(steps_of, leg, self._records))

    async def _begin_leg(self, first: Job, failed: Job, number: int) -> None:
        statuses = await asyncio.to_thread(steps_of, failed, self._records)
        attempts = dict(attempts_of(failed)) | attempts_after(statuses, attempts_of(failed))
        await self._jobs.create(
            first.tenant,
            NewJob(
                kind=LEG,
                queue=STAGE,
                spec={"run": first.id, "attempts": attempts, "definition": first.spec["definition"]},
                display_name=first.display_name,
                labels=first.labels,
                request_id=f"leg-{first.id}-{number}",
                max_attempts=_MAX_ATTEMPTS,
                id=_leg_id(first.id, number),
            ),
        )

    # Checking

    async def _ask_stages(self, tenant: str, definition: RunDefinition, document: Document) -> None:
        """Have the stages check the steps of which everything is known; notes what they say by line."""
        mistakes = Mistakes(document)
        answers = await asyncio.gather(*(self._ask(tenant, step) for step in definition.steps))
        for step, error in zip(definition.steps, answers, strict=True):
            if error is not None:
                _note(step, error, mistakes)
        for step in definition.steps:
            if step.kind == GateStep.kind:
                await self._check_metrics(step, definition, mistakes)
        mistakes.refuse()

    async def _ask(self, tenant: str, step: StepDefinition) -> MartletError | None:
        """What is wrong with a step by the word of its stage; None also if that can't be known yet."""
        kind = KINDS[step.kind]
        try:
            if isinstance(kind, JobStep):
                _ = kind.jobs.client(self._world.stages).channel  # Unimplemented where there is no such stage
                if not any(references(dict(step.options), "")):
                    draft = kind.draft(StepPlace("", step.id, 0, tenant), step.options, validate_only=True)
                    await kind.create(self._world, draft)
            elif isinstance(kind, DeployStep) and not any(references(alias := step.options["alias"], "")):
                await kind.check_free(self._world, alias)
        except MartletError as error:
            if is_passing(error):
                raise
            return error
        return None

    async def _check_metrics(self, gate: StepDefinition, definition: RunDefinition, mistakes: Mistakes) -> None:
        for index, text in enumerate(gate.options["require"]):
            for condition in conditions({"require": [text]}):
                for name in condition.names:
                    other = definition.step(name.step)
                    try:
                        known = await KINDS[other.kind].metrics_known(self._world, other.options)
                    except MartletError:
                        continue  # its stage can't say; the gate itself will
                    if known is not None and not matching(name.metric, sorted(known)):
                        path = f"steps.{gate.id}.with.require[{index}]"
                        mistakes.add(path, unknown_metric(name, sorted(known)))


class _NoRecords(StepRecords):
    """Of runs that are only just made."""

    def __init__(self) -> None:
        """Nothing to read from."""

    def known(self, run: str, definition: RunDefinition, attempts: Mapping[str, int]) -> dict[str, Any]:
        """Nothing."""
        return {}


_NO_RECORDS = _NoRecords()


def _note(step: StepDefinition, error: MartletError, mistakes: Mistakes) -> None:
    """What a stage refused, at the fields that it named."""
    path = f"steps.{step.id}.with"
    if isinstance(error, InvalidArgument) and error.violations:
        for violation in error.violations:
            field = violation.field.removeprefix("spec.").removeprefix("with.")
            mistakes.add(f"{path}.{field}", violation.description)
        return
    field = error.metadata.get("param") or error.message.partition(":")[0]
    field = field.removeprefix("spec.")
    mistakes.add(f"{path}.{field}" if " " not in field else path, error.message)


def _leg_id(run: str, number: int) -> str:
    return f"{run}r{number}"


def _of_leg(event: JobEvent, number: int) -> JobEvent:
    return replace(event, cursor=f"{number}.{event.cursor}")


def _place(cursor: str) -> tuple[int, str]:
    """The leg and the cursor in it that a run's cursor means."""
    if not cursor:
        return 0, ""
    number, dot, rest = cursor.partition(".")
    if not dot or not number.isdecimal() or len(number) > 4:
        raise InvalidArgument.field("after", f"{cursor[:40]!r} is not a cursor of an event")
    return int(number), rest
