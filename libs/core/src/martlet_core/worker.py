"""The worker: a thin supervisor that hears the bell, claims jobs and carries them out one at a time.

Celery runs it with one pool thread (``docs/adr/0002-worker-pool.md``). It imports no ML library: a recipe runs in a
process of its own.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core.artifacts.types import Artifact, PublishedModel
from martlet_core.errors import FailedPrecondition, InvalidArgument, MartletError, NotFound, Unimplemented
from martlet_core.job_bus import Bell, run_celery_worker
from martlet_core.job_gpus import GpuHold, JobGpus, WaitNotes
from martlet_core.job_handler import FinishedJob, JobHandler, PreparedJob
from martlet_core.jobs import Claim, Job, JobEvent, JobState
from martlet_core.logs import job_context
from martlet_core.stores import Stores
from martlet_core.supervisor import JobRun

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker behaves.

    Attributes:
        queue: the queue it serves.
        work_dir: scratch space; one directory an attempt.
        lease_seconds: length of a claim's lease.
        stop_grace_seconds: time a recipe gets to write its last checkpoint and stop.
        idle_poll_seconds: how often an idle worker looks into the queue by itself: a bell may be lost, or heard by
            a busy worker.
        preempt_after_seconds: how long a job of higher priority must have waited before the running one writes a
            checkpoint and makes room for it; 0: it never does.
        gpu_poll_seconds: how often a job that waits for GPUs asks for them again.
    """

    queue: str
    work_dir: Path
    lease_seconds: float = 30.0
    stop_grace_seconds: float = 60.0
    idle_poll_seconds: float = 1.0
    preempt_after_seconds: float = 0.0
    gpu_poll_seconds: float = 1.0


@dataclass(frozen=True)
class _Work:
    """A claimed job, the GPUs it got (None where no leases are taken), and why it can't be done, if that is known."""

    claim: Claim
    gpus: GpuHold | None = None
    refusal: MartletError | None = None


class Worker:
    """Carries out the jobs of one queue, one at a time.

    Args:
        stores: where everything is kept.
        bell: rung when a job is given back, so that another worker takes it at once.
        handlers: one for each kind of job.
        options: see ``WorkerOptions``.
        gpus: takes the GPUs that jobs need; None where no leases are taken.
    """

    def __init__(
        self,
        stores: Stores,
        bell: Bell,
        handlers: Sequence[JobHandler],
        options: WorkerOptions,
        gpus: JobGpus | None = None,
    ) -> None:
        self._stores = stores
        self._bell = bell
        self._handlers = {handler.kind: handler for handler in handlers}
        self._options = options
        self._gpus = gpus
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._busy = threading.Lock()
        self._shutdown = threading.Event()
        self._run: JobRun | None = None
        self._poller = threading.Thread(target=self._poll, name="idle-poll", daemon=True)

    @property
    def polls(self) -> bool:
        """Whether it looks into the queue, or will once it is started."""
        return self._poller.ident is None or self._poller.is_alive()

    def start(self) -> None:
        """Clear what dead workers left in the scratch space, and begin to look into the queue now and then."""
        self._options.work_dir.mkdir(parents=True, exist_ok=True)
        _sweep(self._options.work_dir)
        self._poller.start()

    def stop(self) -> None:
        """Ask the running job to write a checkpoint and give its worker back; claim no more. Returns at once."""
        self._shutdown.set()
        run = self._run
        if run is not None:
            run.wake()

    def join(self) -> None:
        """Wait until no job runs."""
        with self._busy:
            return

    def on_ring(self, job_id: str) -> None:
        """Claim the job that the bell named, unless someone has it, then whatever waits. Blocks while the worker is
        busy.
        """
        with self._busy:
            self._drain(job_id)

    def drain(self) -> None:
        """Claim and carry out jobs until the queue is empty."""
        with self._busy:
            self._drain(None)

    def _drain(self, job_id: str | None) -> None:
        try:
            work = self._next(job_id)
            while work is not None:
                self._carry_out(work)
                work = self._next(None)
        except MartletError as error:
            logger.warning("No job could be claimed: %s", error)
        except Exception:  # the lease of a job that was left lapses; this worker must stay to hear the next bell
            logger.exception("A job was left.")

    def _next(self, job_id: str | None) -> _Work | None:
        """Claim the job that was rung for, or the first of the queue; with GPUs always the first, whoever rang."""
        if self._gpus is not None:
            return self._next_with_gpus(self._gpus)
        claim = self._claim(job_id) if job_id else self._claim_next()
        return _Work(claim) if claim is not None else None

    def _next_with_gpus(self, gpus: JobGpus) -> _Work | None:
        """Claim the first job of the queue once it has the GPUs that it needs. Until then it stays QUEUED, with the reason
        on record: it can be paused or cancelled, and another worker may have it.
        """
        notes = WaitNotes(self._stores.jobs)
        try:
            while not self._shutdown.is_set():
                job = self._stores.jobs.first_queued(self._options.queue)
                if job is None:
                    return None
                hold, refusal = None, None
                try:
                    hold = gpus.take(job, self._gpus_needed(job))
                except FailedPrecondition as error:
                    refusal = error
                if hold is None and refusal is None:
                    notes.note(job, gpus.reason)
                    self._shutdown.wait(self._options.gpu_poll_seconds)
                    continue
                work = self._claim_with(job.id, hold, refusal)
                if work is not None:
                    notes.is_claimed(job)
                    return work
        finally:
            gpus.leave_line()
            notes.close()
        return None

    def _gpus_needed(self, job: Job) -> int:
        try:
            return self._handler(job).gpus_needed(job)
        except InvalidArgument:
            return 0  # preparing the job will say what is wrong with its spec

    def _claim_with(self, job_id: str, hold: GpuHold | None, refusal: MartletError | None) -> _Work | None:
        claim = None
        try:
            claim = self._claim(job_id)
        finally:
            if claim is None and hold is not None:
                hold.release()
        return _Work(claim, hold, refusal) if claim is not None else None

    def _claim(self, job_id: str) -> Claim | None:
        if self._shutdown.is_set():
            return None
        try:
            return self._stores.jobs.claim(job_id, self.owner, self._options.lease_seconds)
        except NotFound:
            logger.info("The bell rang for job %s, which is gone.", job_id)
            return None

    def _claim_next(self) -> Claim | None:
        if self._shutdown.is_set():
            return None
        return self._stores.jobs.claim_next(self._options.queue, self.owner, self._options.lease_seconds)

    def _carry_out(self, work: _Work) -> None:
        try:
            self._attempt(work)
        finally:
            if work.gpus is not None:
                work.gpus.release()

    def _attempt(self, work: _Work) -> None:
        claim, job = work.claim, work.claim.job
        logger.info("Attempt %s at %s job %s begins.", claim.token, job.kind, job.id)
        if work.gpus is not None and work.gpus.text:
            self._say(claim, work.gpus.text)
        with job_context(job.id), _scratch(self._options.work_dir, f"{job.id}-{claim.token}") as workdir:
            self._run = JobRun(
                self._stores,
                _Refusal(job.kind, work.refusal) if work.refusal else self._handler(job),
                claim,
                workdir=workdir,
                lease_seconds=self._options.lease_seconds,
                stop_grace_seconds=self._options.stop_grace_seconds,
                shutdown=self._shutdown,
                preempt_after_seconds=self._options.preempt_after_seconds,
                gpus=work.gpus,
            )
            try:
                state = self._run.run()
            finally:
                self._run = None
        logger.info("Attempt %s at job %s ended: %s.", claim.token, job.id, state.value if state else "lease lost")
        if state is JobState.QUEUED:
            self._after_queued(job.id, job.lost_attempts)

    def _say(self, claim: Claim, text: str) -> None:
        try:
            self._stores.jobs.append_event(
                claim.job.id, JobEvent("log", text, attempt=claim.token, data={"source": "worker"})
            )
        except MartletError as error:
            logger.info("Not on record: %s (%s)", text, error)

    def _after_queued(self, job_id: str, lost_before: int) -> None:
        """Let another worker have a job that was given back; wait a little before a crashed one is tried again."""
        if self._shutdown.is_set():
            self._bell.ring(self._options.queue, job_id)
        elif self._stores.jobs.get(job_id).lost_attempts > lost_before:
            self._shutdown.wait(min(2.0**lost_before, _LONGEST_PAUSE_SECONDS))

    def _handler(self, job: Job) -> JobHandler:
        if job.kind in self._handlers:
            return self._handlers[job.kind]
        known = ", ".join(sorted(self._handlers))
        text = f"No worker of queue {job.queue!r} knows jobs of kind {job.kind!r}; known: {known}."
        return _Refusal(job.kind, Unimplemented(text))

    def _poll(self) -> None:
        while not self._shutdown.wait(self._options.idle_poll_seconds):
            if self._busy.acquire(blocking=False):
                try:
                    self._drain(None)
                finally:
                    self._busy.release()


def run_worker(worker: Worker, redis_url: str, queue: str) -> int:
    """Run a worker under Celery until SIGTERM; returns the exit code. Call it in the main thread."""
    worker.start()
    exit_code = run_celery_worker(redis_url, queue, worker.owner, on_ring=worker.on_ring, on_stop=worker.stop)
    worker.stop()
    worker.join()
    return exit_code


class _Refusal:
    """Stands in for the handler of a job that this worker can't do: it fails with a readable reason."""

    entrypoint = ""

    def __init__(self, kind: str, error: MartletError) -> None:
        self.kind = kind
        self._error = error

    def gpus_needed(self, job: Job) -> int:
        return 0

    def prepare(self, job: Job) -> PreparedJob:
        raise self._error

    def finish(self, job: Job, values: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> FinishedJob:
        raise NotImplementedError  # not reached: prepare refuses

    def published_model(self, job: Job) -> PublishedModel | None:
        return None

    def checkpoint_model(self, job: Job, checkpoint: Mapping[str, Any]) -> PublishedModel | None:
        return None


@contextmanager
def _scratch(work_dir: Path, name: str) -> Iterator[Path]:
    """A directory for one attempt, locked while it is in use and deleted afterwards."""
    home = work_dir / name
    workdir = home / "job"
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        workdir.mkdir(parents=True, exist_ok=True)  # again all of it, in case a sweep came before the lock
        try:
            yield workdir
        finally:
            shutil.rmtree(home, ignore_errors=True)


def _sweep(work_dir: Path) -> None:
    """Delete directories of workers that died: nobody holds their lock."""
    for path in work_dir.glob("*/.lock"):
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            logger.info("Deleting %s, which a worker that died left behind.", path.parent)
            shutil.rmtree(path.parent, ignore_errors=True)
