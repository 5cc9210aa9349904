"""Follows one training for one tracker: from the job's events to the tool's process, until the job is over and the tool knows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from martlet_core.errors import MartletError, NotFound
from martlet_core.job_archive import EventLog
from martlet_core.jobs import Job, JobEvent
from martlet_core.provenance import MADE_BY
from martlet_core.stores import Stores

from martlet_trainer.trackers import TrackerConfig
from martlet_trainer.tracking.process import TrackerFailed
from martlet_trainer.tracking.record import Record, load_record, store_record
from martlet_trainer.tracking.run import Point, RunEnd, TrackedRun

logger = logging.getLogger(__name__)
T = TypeVar("T")

_PAGE = 500
_LONGEST_STORE_PAUSE_SECONDS = 10.0
#: Of a data report; rows' own words stay here.
_NOT_TOLD = frozenset({"issues"})


@dataclass(frozen=True)
class FollowOptions:
    """Times, in seconds.

    Attributes:
        poll_seconds: between two looks at a job's events.
        idle_seconds: a process that had nothing to do for so long leaves; the next news starts another.
        first_pause_seconds: before a tool that failed is tried again; doubled each time.
        longest_pause_seconds: the pause grows no further.
        give_up_seconds: a job that has been over for so long is no longer told to a tool that fails.
    """

    poll_seconds: float = 2.0
    idle_seconds: float = 120.0
    first_pause_seconds: float = 5.0
    longest_pause_seconds: float = 600.0
    give_up_seconds: float = 7 * 24 * 3600.0


class Process(Protocol):
    """What a follower needs of ``TrackerProcess``."""

    async def open(self, run: TrackedRun) -> Mapping[str, Any]: ...
    async def log(self, points: Sequence[Point]) -> None: ...
    async def close(self, end: RunEnd) -> None: ...
    async def leave(self) -> None: ...
    async def end(self) -> None: ...


@dataclass(frozen=True)
class _News:
    record: Record
    points: Sequence[Point]
    job: Job
    is_end: bool


class Follower:
    """One training and one tracker.

    Args:
        stores: where the job and its events are; the only thing written is the record.
        job_id: the training.
        tracker: what was asked of the tracker.
        directory: of the tools that write files.
        start: starts the tool's process.
        slots: how many processes there may be.
        options: see ``FollowOptions``.
    """

    def __init__(
        self,
        stores: Stores,
        job_id: str,
        tracker: TrackerConfig,
        directory: str,
        start: Callable[[str], Awaitable[Process]],
        slots: asyncio.Semaphore,
        options: FollowOptions,
    ) -> None:
        self._stores = stores
        self._events = EventLog(stores.jobs, stores.objects)
        self._job_id = job_id
        self._tracker = tracker
        self._directory = directory
        self._start = start
        self._slots = slots
        self._options = options
        self._stopped = asyncio.Event()

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Leave the tool at the next chance; ``run`` returns then."""
        self._stopped.set()

    async def run(self) -> None:
        """Follow to the end, or until ``stop``. Raises nothing that a tool or a store did."""
        record = await self._ask_store(lambda: load_record(self._stores.objects, self._job_id, self._tracker.kind))
        pause = self._options.first_pause_seconds
        while record is not None and not record.done and not self._stopped.is_set():
            news = await self._news(record, None)
            if news is None:
                return
            try:
                async with self._slots:
                    if self._stopped.is_set():
                        return
                    record = await self._session(record, news)
                pause = self._options.first_pause_seconds
            except TrackerFailed as error:
                if news.job.state.is_final and time.time() - news.job.end_time > self._options.give_up_seconds:
                    logger.error("Job %s is given up by its tracker: %s", self._job_id, error)
                    return
                logger.warning("Job %s is tracked again in %g s: %s", self._job_id, pause, error)
                await self._sleep(pause)
                pause = min(2 * pause, self._options.longest_pause_seconds)
                record = await self._ask_store(
                    lambda: load_record(self._stores.objects, self._job_id, self._tracker.kind)
                )

    async def _session(self, record: Record, first: _News) -> Record:
        """One process's life; the record as it is then. Records are stored as the tool takes what they stand for."""
        news: _News | None = first
        process = await self._start(self._tracker.kind)
        try:
            opened = await process.open(self._tracked(first.job, record))
            known = opened["known"]
            if known is not None and known < record.points:  # what it was told didn't reach its server
                record = Record()
                news = await self._news(record, None)
            while news is not None:
                if news.points:
                    await process.log(news.points)
                if news.is_end:
                    await process.close(await self._end_of(news.job))
                record = replace(news.record, tool_run=opened["tool_run"], done=news.is_end)
                await self._keep(record)
                if record.done:
                    return record
                news = await self._news(record, self._options.idle_seconds)
            await process.leave()
            return record
        finally:
            await process.end()

    async def _news(self, record: Record, timeout_seconds: float | None) -> _News | None:
        """The next points, or the end, behind a record; None once that took too long or ``stop`` was called."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not self._stopped.is_set():
            found = await self._ask_store(lambda record=record: self._read(record))
            if found is None:
                return None
            job, events = found
            record, points = record.take(events)
            is_end = job.state.is_final and len(events) < _PAGE
            if points or is_end:
                return _News(record, points, job, is_end)
            if len(events) < _PAGE:
                if deadline is not None and time.monotonic() > deadline:
                    return None
                await self._sleep(self._options.poll_seconds)
        return None

    def _read(self, record: Record) -> tuple[Job, Sequence[JobEvent]]:
        job = self._stores.jobs.get(self._job_id)  # before its events: a job that is over says no more
        return job, self._events.page(job, record.cursor, _PAGE)

    def _tracked(self, job: Job, record: Record) -> TrackedRun:
        tracker = self._tracker
        return TrackedRun(
            job_id=job.id,
            tenant=job.tenant,
            project=tracker.project,
            name=tracker.run_name or job.id,
            config={name: value for name, value in job.spec.items() if name != "trackers"},
            directory=self._directory,
            entity=tracker.entity or "",
            tags=tracker.tags,
            tool_run=record.tool_run,
            said_until=record.said_until,
        )

    async def _end_of(self, job: Job) -> RunEnd:
        result = {
            name: {key: part for key, part in value.items() if key not in _NOT_TOLD}
            if isinstance(value, Mapping)
            else value
            for name, value in job.result.items()
            if name != "resolved_config"
        }
        made_by = await self._ask_store(lambda: self._made_by(job))
        summary = {**result, "attempts": job.attempt, MADE_BY: made_by or {}}
        if job.error is not None:
            summary["error"] = {"reason": job.error.get("reason", ""), "message": job.error.get("message", "")}
        return RunEnd(job.state.value, job.end_time, job.result.get("resolved_config") or {}, summary)

    def _made_by(self, job: Job) -> Mapping[str, str]:
        """Versions of the code that trained, as the model's record has them."""
        name = str(job.result.get("model_artifact", ""))
        if not name:
            return {}
        try:
            return self._stores.artifacts.get(name.removeprefix("artifacts/")).metadata.get(MADE_BY, {})
        except NotFound:
            return {}  # deleted meanwhile

    async def _keep(self, record: Record) -> None:
        await self._ask_store(lambda: store_record(self._stores.objects, self._job_id, self._tracker.kind, record))

    async def _ask_store(self, call: Callable[[], T]) -> T | None:
        """Call until a store answers; None once ``stop`` was called. A job that isn't there may be being restored."""
        pause = self._options.poll_seconds
        while True:
            try:
                return await asyncio.to_thread(call)
            except MartletError as error:
                logger.warning("Job %s can't be followed for the moment: %s", self._job_id, error)
            if self._stopped.is_set():
                return None
            await self._sleep(pause)
            pause = min(2 * pause, _LONGEST_STORE_PAUSE_SECONDS)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            return
