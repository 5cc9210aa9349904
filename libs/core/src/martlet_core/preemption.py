"""When a running job makes room for one that matters more.

Each worker decides for the job it runs, from what all of them see in the job store: of the running jobs of a queue, the
ones of lowest priority (the newest first) stand against the waiting ones of highest priority, one to one. A job that
makes room writes a checkpoint and is QUEUED again; the attempt doesn't count as lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from martlet_core.errors import MartletError
from martlet_core.jobs import Job, JobState, JobStore

logger = logging.getLogger(__name__)

#: Seconds between two looks at the queue. Two in a row must agree: between a job's giving way and the next one's claim
#: there is a moment in which another running job seems to be the one to go.
CHECK_SECONDS = 5.0
_PAGE = 200


class Preemption:
    """Watches the queue for one running job.

    Args:
        jobs: the job store.
        job: the running job.
        after_seconds: how long a job must have been QUEUED before others make room for it; 0 switches preemption off.
        check_seconds: see ``CHECK_SECONDS``.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        jobs: JobStore,
        job: Job,
        after_seconds: float,
        *,
        check_seconds: float = CHECK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = jobs
        self._job = job
        self._after_seconds = after_seconds
        self._check_seconds = check_seconds
        self._clock = clock
        self._next_check = clock() + check_seconds
        self._hits = 0

    @property
    def is_on(self) -> bool:
        """Whether the job may ever be asked to make room."""
        return self._after_seconds > 0

    def is_due(self) -> bool:
        """True once the job should make room. Cheap between two looks."""
        if not self.is_on or self._clock() < self._next_check:
            return False
        self._next_check = self._clock() + self._check_seconds
        try:
            is_hit = self._has_rival()
        except MartletError as error:
            logger.info("Job %s stays: the queue could not be looked at: %s", self._job.id, error)
            return False
        self._hits = self._hits + 1 if is_hit else 0
        return self._hits >= 2

    def _has_rival(self) -> bool:
        """Whether this job stands against a waiting one, which matters more."""
        mine = self._job
        queued = self._jobs.queued(mine.stage, older_than_seconds=self._after_seconds)
        waiting = [job for job in queued if job.queue == mine.queue and job.priority > mine.priority]
        if not waiting:
            return False
        running = sorted(self._running(), key=lambda job: (job.priority, -job.start_time, job.id))
        place = next((number for number, job in enumerate(running) if job.id == mine.id), len(waiting))
        return place < len(waiting)

    def _running(self) -> Iterator[Job]:
        token = ""
        while True:
            page = self._jobs.list(stage=self._job.stage, states=[JobState.RUNNING], page_size=_PAGE, page_token=token)
            yield from (job for job in page.jobs if job.queue == self._job.queue)
            token = page.next_page_token
            if not token:
                return
