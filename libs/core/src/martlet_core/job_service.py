"""What every stage does with jobs on behalf of its callers: create, look at, steer and watch them.

All reads and writes are checked against the tenant; another tenant's job is NotFound. The stores block, so they are
called in threads; watching pins none (``EventFeed``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from martlet_core.errors import FailedPrecondition, InvalidArgument, MartletError, NotFound
from martlet_core.event_feed import EventFeed
from martlet_core.ids import REQUEST_ID_PATTERN, new_id
from martlet_core.job_archive import EventLog, store_spec
from martlet_core.job_bus import Bell
from martlet_core.jobs import Job, JobEvent, JobPage, JobState
from martlet_core.stores import Stores
from martlet_core.wishes import Wish, forget_wishes, keep_wish

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_LABELS = 16
MAX_LABEL_KEY_CHARACTERS = 64
MAX_LABEL_VALUE_CHARACTERS = 512
MAX_DISPLAY_NAME_CHARACTERS = 128
MAX_PAGE_SIZE = 1000


@dataclass(frozen=True)
class NewJob:
    """What a caller asked for, checked and converted by the stage.

    Attributes:
        kind: kind of job, for the worker's handler.
        queue: queue it waits in.
        spec: JSON-ready.
        display_name, labels, request_id, priority, max_attempts: as in ``Job``.
        id: of the job, for a stage that derives it from another's; empty: a new one.
    """

    kind: str
    queue: str
    spec: Mapping[str, Any]
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    priority: int = 5
    max_attempts: int = 5
    id: str = ""


class JobService:
    """Jobs of one stage.

    Args:
        stage: ``trainer``, ``quantizer``, ``evaluator``.
        stores: where everything is kept.
        bell: wakes a worker.
    """

    def __init__(self, stage: str, stores: Stores, bell: Bell) -> None:
        self._stage = stage
        self._stores = stores
        self._bell = bell
        self._log = EventLog(stores.jobs, stores.objects)
        self._feed = EventFeed(stores.jobs, self._log)

    def draft(self, tenant: str, new: NewJob) -> Job:
        """The job as it would be created, for ``validate_only``. InvalidArgument names every field at fault."""
        _check_new(new)
        return Job(
            id=new.id or new_id(),
            stage=self._stage,
            kind=new.kind,
            tenant=tenant,
            spec=new.spec,
            queue=new.queue,
            state=JobState.VALIDATING,
            display_name=new.display_name,
            labels=dict(new.labels),
            request_id=new.request_id,
            priority=new.priority,
            max_attempts=new.max_attempts,
        )

    async def create(self, tenant: str, new: NewJob) -> Job:
        """Create, store the spec, queue, ring. The same ``request_id`` again returns the job made the first time.

        Raises:
            InvalidArgument: a field is malformed.
            AlreadyExists: the request id was used for another request.
            Unavailable: a store doesn't answer; with a request id, calling again is safe.
        """
        return await _in_thread(lambda: self._create(self.draft(tenant, new)))

    async def get(self, tenant: str, job_id: str, *, kind: str) -> Job:
        """The job. NotFound if there is none, or it is another tenant's or of another kind."""
        return await _in_thread(lambda: self._get(tenant, job_id, kind))

    async def queue_position(self, job: Job) -> int:
        """Place in its queue, counted from 1; 0 when not queued."""
        if job.state is not JobState.QUEUED:
            return 0
        return await _in_thread(lambda: self._stores.jobs.queue_position(job.id))

    async def list(
        self,
        tenant: str,
        *,
        kind: str,
        states: Sequence[JobState] = (),
        labels: Mapping[str, str] | None = None,
        page_size: int = 0,
        page_token: str = "",
    ) -> JobPage:
        """Jobs of the tenant, newest first; ``page_size`` 0 means 20."""
        size = check_page_size(page_size, default=20)
        return await _in_thread(
            lambda: self._stores.jobs.list(
                stage=self._stage,
                kind=kind,
                tenant=tenant,
                states=states,
                labels=labels,
                page_size=size,
                page_token=page_token,
            )
        )

    async def cancel(self, tenant: str, job_id: str, *, kind: str) -> Job:
        """Ask a job to stop for good. FailedPrecondition in a final state."""
        return await self._steer(tenant, job_id, kind, self._stores.jobs.request_cancel, Wish.CANCEL)

    async def pause(self, tenant: str, job_id: str, *, kind: str) -> Job:
        """Ask a job to write a checkpoint and give its worker back. FailedPrecondition in a final state."""
        return await self._steer(tenant, job_id, kind, self._stores.jobs.request_pause, Wish.PAUSE)

    async def resume(self, tenant: str, job_id: str, *, kind: str) -> Job:
        """Queue a paused job again, and ring. FailedPrecondition unless PAUSED or PAUSING."""
        job = await self._steer(tenant, job_id, kind, self._stores.jobs.request_resume, None)
        if job.state is JobState.QUEUED:
            await _in_thread(lambda: self._bell.ring(job.queue, job.id))
        return job

    async def events(
        self,
        tenant: str,
        job_id: str,
        *,
        kind: str,
        page_size: int = 0,
        page_token: str = "",
        newest_first: bool = False,
    ) -> tuple[Sequence[JobEvent], str]:
        """Past events behind a cursor, oldest first (or before it, newest first), and the cursor to go on from (empty
        when there are no more for now).
        """
        size = check_page_size(page_size, default=100)
        job = await self.get(tenant, job_id, kind=kind)
        events = await _in_thread(lambda: self._log.page(job, page_token, size, newest_first=newest_first))
        return events, events[-1].cursor if len(events) == size else ""

    async def watch(self, tenant: str, job_id: str, *, kind: str, after: str = "") -> AsyncGenerator[JobEvent]:
        """Events behind a cursor as they come; ends after the event of the final state."""
        await self.get(tenant, job_id, kind=kind)
        async with aclosing(self._feed.watch(job_id, after=after)) as events:
            async for event in events:
                yield event

    async def checkpoints(
        self, tenant: str, job_id: str, *, kind: str, page_size: int = 0, page_token: str = ""
    ) -> tuple[Sequence[Mapping[str, Any]], str]:
        """Kept checkpoints, newest first, and the token of the next page. A token is the artifact id of the last one
        seen.
        """
        size = check_page_size(page_size, default=10)
        job = await self.get(tenant, job_id, kind=kind)
        entries = list(reversed(job.checkpoints))
        ids = [entry["artifact_id"] for entry in entries]
        if page_token and page_token not in ids:
            raise InvalidArgument.field("page_token", f"{page_token!r} is no checkpoint that is still kept; start anew")
        start = ids.index(page_token) + 1 if page_token else 0
        page = entries[start : start + size]
        return page, page[-1]["artifact_id"] if start + size < len(entries) else ""

    def _create(self, draft: Job) -> Job:
        job, created = self._stores.jobs.create(draft)
        if job.state is not JobState.VALIDATING:
            return job
        try:
            store_spec(self._stores.objects, job)
            job = self._stores.jobs.enqueue(job.id)
        except FailedPrecondition:
            return self._stores.jobs.get(job.id)  # cancelled, or queued by another call with the same request id
        except MartletError:
            # With a request id, the caller's next try goes on from here; without one nobody could.
            if created and not job.request_id:
                self._abandon(job.id)
            raise
        self._bell.ring(job.queue, job.id)
        return job

    def _abandon(self, job_id: str) -> None:
        try:
            self._stores.jobs.request_cancel(job_id)
        except MartletError as error:
            logger.warning(
                "Job %s, whose creation failed, stays VALIDATING until the reconciler sees it: %s", job_id, error
            )

    def _get(self, tenant: str, job_id: str, kind: str) -> Job:
        job = self._stores.jobs.get(job_id)
        if (job.stage, job.kind, job.tenant) != (self._stage, kind, tenant):
            raise NotFound(f"There is no job {job_id!r}.", reason="JOB_NOT_FOUND", metadata={"job_id": job_id})
        return job

    async def _steer(
        self, tenant: str, job_id: str, kind: str, request: Callable[[str], Job], wish: Wish | None
    ) -> Job:
        def call() -> Job:
            self._get(tenant, job_id, kind)
            job = request(job_id)
            self._note(job_id, wish)
            return job

        return await _in_thread(call)

    def _note(self, job_id: str, wish: Wish | None) -> None:
        """Keep the wish that was granted, or forget those of before. The job store has it: an object store that is
        away must not keep anybody from cancelling.
        """
        try:
            if wish is None:
                forget_wishes(self._stores.objects, self._stage, job_id)
            else:
                keep_wish(self._stores.objects, self._stage, job_id, wish)
        except MartletError as error:
            logger.warning("A wish about job %s is left to the reconciler to note: %s", job_id, error)


def check_page_size(page_size: int, *, default: int) -> int:
    """A request's page size, with 0 read as the default. InvalidArgument outside 1 to 1000."""
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidArgument.field("page_size", f"{page_size} is outside 1 to {MAX_PAGE_SIZE} (0 means {default})")
    return page_size or default


def _check_new(new: NewJob) -> None:
    if new.request_id and not REQUEST_ID_PATTERN.fullmatch(new.request_id):
        raise InvalidArgument.field("request_id", f"{new.request_id!r} doesn't match {REQUEST_ID_PATTERN.pattern}")
    if len(new.display_name) > MAX_DISPLAY_NAME_CHARACTERS:
        raise InvalidArgument.field(
            "display_name", f"has {len(new.display_name)} characters; at most {MAX_DISPLAY_NAME_CHARACTERS} are allowed"
        )
    if len(new.labels) > MAX_LABELS:
        raise InvalidArgument.field("labels", f"{len(new.labels)} labels; at most {MAX_LABELS} are allowed")
    for key, value in new.labels.items():
        if not 1 <= len(key) <= MAX_LABEL_KEY_CHARACTERS or len(value) > MAX_LABEL_VALUE_CHARACTERS:
            raise InvalidArgument.field(
                f"labels[{key!r}]",
                f"keys have 1 to {MAX_LABEL_KEY_CHARACTERS} characters, values at most {MAX_LABEL_VALUE_CHARACTERS}",
            )


async def _in_thread(call: Callable[[], T]) -> T:
    return await asyncio.to_thread(call)
