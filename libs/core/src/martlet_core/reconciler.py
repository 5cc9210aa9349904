"""Mends what died, got lost or was forgotten. One reconciler a stage is at work at a time, elected by a named lease."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from martlet_core.errors import FailedPrecondition, MartletError, NotFound, Unavailable
from martlet_core.job_archive import archive_job, final_key, is_whole, mark_whole, restore_jobs
from martlet_core.job_bus import Bell
from martlet_core.job_handler import JobHandler, PublishesMeanwhile, TriesItsModel
from martlet_core.jobs import FINAL_STATES, Job, JobState
from martlet_core.publishing import publish_model, unpublish_model
from martlet_core.stores import Stores
from martlet_core.temporary_models import withdraw_temporary
from martlet_core.wishes import WISH_OF_STATE, Wish, forget_wishes, keep_wish, read_wishes

logger = logging.getLogger(__name__)

_PAGE = 200
_LONGEST_PAUSE_SECONDS = 600.0
_SHORTEST_LEASE_SECONDS = 3.0


@dataclass(frozen=True)
class ReconcilerOptions:
    """How often what is looked at, in seconds.

    Attributes:
        interval_seconds: between two rounds; a lapsed lease is noticed that late.
        unclaimed_seconds: a job QUEUED for longer gets its bell rung again, then after twice that, and so on.
        full_scan_seconds: between two looks at all final jobs and all wishes; a round by itself looks at the newest
            page and at jobs whose pause or cancel was asked for.
        abandoned_seconds: a job VALIDATING for longer is cancelled: whoever created it is gone.
        keep_events_seconds: events of an archived job stay in the job store that long.
    """

    interval_seconds: float = 5.0
    unclaimed_seconds: float = 15.0
    full_scan_seconds: float = 300.0
    abandoned_seconds: float = 600.0
    keep_events_seconds: float = 7 * 24 * 3600.0


@dataclass(frozen=True)
class _Rung:
    time: float
    pause_seconds: float


class Reconciler:
    """Keeps one stage's jobs moving.

    Args:
        stage: whose jobs.
        stores: where everything is kept.
        bell: wakes workers.
        handlers: one for each kind of job; they say which models should be published.
        owner: name in the election; unique to the process.
        options: see ``ReconcilerOptions``.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        stage: str,
        stores: Stores,
        bell: Bell,
        handlers: Sequence[JobHandler],
        owner: str,
        options: ReconcilerOptions | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stage = stage
        self._stores = stores
        self._bell = bell
        self._handlers = {handler.kind: handler for handler in handlers}
        self._owner = owner
        self._options = options or ReconcilerOptions()
        self._lease_name = f"reconciler:{stage}"
        self._clock = clock
        self._archived: set[str] = set()
        self._rung: dict[str, _Rung] = {}
        self._wishes: dict[str, Wish] = {}
        self._rounds_to_full_scan = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"reconciler-{stage}", daemon=True)

    def start(self) -> None:
        """Begin to work, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round under way, and let another take over."""
        self._stopped.set()
        self._thread.join()
        try:
            self._stores.jobs.release_lease(self._lease_name, self._owner)
        except MartletError as error:
            logger.info("The reconciler's lease was left to lapse: %s", error)

    def run_once(self) -> bool:
        """One round; False if another reconciler is the elected one."""
        lease_seconds = max(3 * self._options.interval_seconds, _SHORTEST_LEASE_SECONDS)
        if not self._stores.jobs.acquire_lease(self._lease_name, self._owner, lease_seconds):
            return False
        self._restore_if_emptied()
        full = self._rounds_to_full_scan <= 0
        if full:
            self._rounds_to_full_scan = round(self._options.full_scan_seconds / self._options.interval_seconds)
        self._rounds_to_full_scan -= 1
        self._reap()
        self._ring_again()
        self._look_after_new_and_asked(full)
        self._archive_final(full)
        return True

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.run_once()
            except MartletError as error:
                logger.warning("A round of the %s reconciler failed: %s", self._stage, error)
            except Exception:
                logger.exception("A round of the %s reconciler failed.", self._stage)
            self._stopped.wait(self._options.interval_seconds)

    def _restore_if_emptied(self) -> None:
        """Rebuild the stage's jobs when the job store lost them. The mark of a whole store is set once all jobs are
        back, so a restoration that was cut short is taken up again.
        """
        jobs = self._stores.jobs
        if is_whole(jobs, self._stage):
            return
        restored = restore_jobs(jobs, self._stores.objects, self._stores.artifacts, self._stage)
        mark_whole(jobs, self._stage)
        if restored:
            self._archived.clear()
            self._rounds_to_full_scan = 0
            logger.warning("The job store was empty: restored %d %s jobs from the object store.", restored, self._stage)

    def _reap(self) -> None:
        for job in self._stores.jobs.reap(self._stage):
            logger.warning("The lease of job %s lapsed; it is %s now.", job.id, job.state.value)
            if job.state is JobState.QUEUED:
                self._bell.ring(job.queue, job.id)

    def _ring_again(self) -> None:
        """Ring for jobs nobody claimed, ever more rarely for each: when all workers are busy for hours, rings must not
        pile up.
        """
        queued = self._stores.jobs.queued(self._stage, older_than_seconds=self._options.unclaimed_seconds)
        now = self._clock()
        rung: dict[str, _Rung] = {}
        for job in queued:
            last = self._rung.get(job.id)
            if last is not None and now < last.time + last.pause_seconds:
                rung[job.id] = last
                continue
            pause_seconds = 2 * last.pause_seconds if last else self._options.unclaimed_seconds
            rung[job.id] = _Rung(now, min(pause_seconds, _LONGEST_PAUSE_SECONDS))
            self._bell.ring(job.queue, job.id)
        self._rung = rung

    def _look_after_new_and_asked(self, full: bool) -> None:
        """Cancel creations that were abandoned, and keep what was asked of jobs; one look at the jobs serves both."""
        asked: dict[str, Wish] = {}
        for job in self._pages([JobState.VALIDATING, *WISH_OF_STATE]):
            if job.state is JobState.VALIDATING:
                self._cancel_if_abandoned(job)
            else:
                asked[job.id] = WISH_OF_STATE[job.state]
        self._keep_wishes(asked, full)

    def _cancel_if_abandoned(self, job: Job) -> None:
        if self._clock() - job.update_time <= self._options.abandoned_seconds:
            return
        try:
            self._stores.jobs.request_cancel(job.id)
        except FailedPrecondition:
            return  # its creator came back meanwhile
        logger.warning("Job %s was left VALIDATING and is cancelled.", job.id)

    def _keep_wishes(self, asked: Mapping[str, Wish], full: bool) -> None:
        """Note what the job service could not; in a full scan forget what is no longer wished."""
        objects = self._stores.objects
        noted = read_wishes(objects, self._stage) if full else self._wishes
        for job_id, wish in asked.items():
            if noted.get(job_id) is not wish:
                keep_wish(objects, self._stage, job_id, wish)
        self._wishes = dict(asked)
        if full:
            for job_id in noted.keys() - asked.keys():
                if self._is_granted(job_id):
                    forget_wishes(objects, self._stage, job_id)

    def _is_granted(self, job_id: str) -> bool:
        """Whether a wish about a job is of no more use: the job goes on, or its end is archived."""
        try:
            state = self._stores.jobs.get(job_id).state
        except NotFound:
            return False  # the job store was emptied this moment
        if state.is_final:
            return self._stores.objects.size(final_key(job_id)) is not None
        return state not in WISH_OF_STATE

    def _archive_final(self, full: bool) -> None:
        for number, job in enumerate(self._pages(sorted(FINAL_STATES, key=lambda state: state.value))):
            if number >= _PAGE and not full:
                return
            if job.id not in self._archived:
                self._archive(job)
                self._archived.add(job.id)

    def _archive(self, job: Job) -> None:
        if self._stores.objects.size(final_key(job.id)) is not None:
            return
        if job.state is JobState.SUCCEEDED:
            self._publish(job)
        else:
            self._withdraw(job)
        if isinstance(self._handlers.get(job.kind), PublishesMeanwhile):
            withdraw_temporary(self._stores, job.id)
        archive_job(self._stores.jobs, self._stores.objects, job)
        try:
            self._stores.jobs.expire_events(job.id, self._options.keep_events_seconds)
        except NotFound:
            return

    def _publish(self, job: Job) -> None:
        """Publish what the worker would have, had it not died between its commit and that; mostly it has been done."""
        handler = self._handlers.get(job.kind)
        try:
            model = handler.published_model(job) if handler is not None else None
            if model is not None:
                publish_model(self._stores.models, model)
        except Unavailable:
            raise
        except MartletError as error:
            logger.warning("The model of job %s could not be published: %s", job.id, error)

    def _withdraw(self, job: Job) -> None:
        """Take back the name that an attempt published for a trial (``TriesItsModel``), if it died in it."""
        handler = self._handlers.get(job.kind)
        if not isinstance(handler, TriesItsModel):
            return
        try:
            name = handler.tried_name(job)
            model = self._stores.models.get(name, tenant=job.tenant) if name else None
            if model is not None and model.source_job == job.id:
                unpublish_model(self._stores.models, model)
        except NotFound:
            return
        except Unavailable:
            raise
        except MartletError as error:
            logger.warning("The model of job %s could not be withdrawn: %s", job.id, error)

    def _pages(self, states: Sequence[JobState]) -> Iterator[Job]:
        token = ""
        while True:
            page = self._stores.jobs.list(stage=self._stage, states=states, page_size=_PAGE, page_token=token)
            yield from page.jobs
            token = page.next_page_token
            if not token:
                return
