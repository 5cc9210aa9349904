"""GPUs for the jobs of one worker: taken before a job is claimed, given back when its process is dead."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Mapping

from martlet_core.errors import FailedPrecondition, MartletError
from martlet_core.gpu_devices import GpuMachine, find_machine
from martlet_core.gpu_leases import RedisGpuLeases
from martlet_core.gpu_rules import describe_wait
from martlet_core.gpu_settings import GpuSettings
from martlet_core.gpus import VISIBLE, GpuLease, GpuLeases, GpuWait, GpuWish
from martlet_core.jobs import Job, JobStore

logger = logging.getLogger(__name__)


class GpuHold:
    """What an attempt may use of the machine's GPUs; nothing, where it needs none.

    Attributes:
        environ: variables for its process, to be set before torch is imported.
        text: what it got, for people; empty for nothing.
    """

    def __init__(
        self, leases: GpuLeases, lease: GpuLease | None, lease_seconds: float, environ: Mapping[str, str], text: str
    ) -> None:
        self._leases = leases
        self._lease = lease
        self._lease_seconds = lease_seconds
        self._lock = threading.Lock()  # a renewal under way must not bring back what is given back
        self.environ = environ
        self.text = text

    def renew(self) -> None:
        """Keep the GPUs, until they are given back. LeaseLost if others have them; Unavailable if the store doesn't answer."""
        with self._lock:
            if self._lease is not None:
                self._leases.renew(self._lease, self._lease_seconds)

    def release(self) -> None:
        """Give the GPUs back; once is enough. What the store can't be told lapses by itself."""
        with self._lock:
            lease, self._lease = self._lease, None
            if lease is None:
                return
            try:
                self._leases.release(lease.holder)
            except MartletError as error:
                logger.warning("The GPUs of %s are left to lapse: %s", lease.label, error)


class JobGpus:
    """Takes GPUs for a worker's jobs, one job at a time.

    Args:
        leases: the machine's.
        machine: which of its GPUs the worker may use.
        share: of each GPU that a job takes.
        lease_seconds: length of a lease; as long as that of a job, whose heartbeat renews both.

    Attributes:
        reason: why the job that was asked for last must wait; empty where another worker says it.
    """

    def __init__(self, leases: GpuLeases, machine: GpuMachine, share: float, lease_seconds: float) -> None:
        self._leases = leases
        self._machine = machine
        self._share = share
        self._lease_seconds = lease_seconds
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._in_line = ""
        self.reason = ""

    @classmethod
    def open(cls, settings: GpuSettings) -> JobGpus | None:
        """What the settings and the machine say; None where no leases are taken.

        Raises:
            FailedPrecondition: see ``find_machine``.
        """
        machine = find_machine(settings, os.environ)
        if machine is None:
            return None
        share = settings.job_share(machine.seen)
        logger.info("Jobs take %g of each of their GPUs; here are %s.", share, ", ".join(machine.names.values()))
        leases = RedisGpuLeases.from_url(settings.redis_url, machine.id)
        return cls(leases, machine, share, settings.lease_seconds)

    def take(self, job: Job, count: int) -> GpuHold | None:
        """The GPUs that a job needs; None while it must wait, with ``reason`` set. Ask again, or ``leave_line``.

        Raises:
            FailedPrecondition: it needs more than the worker may ever use (``NO_GPU``).
            Unavailable: the store doesn't answer.
        """
        if count == 0:
            self.leave_line()
            return GpuHold(self._leases, None, self._lease_seconds, {VISIBLE: ""}, "")
        if count > len(self._machine.gpus):
            self.leave_line()
            raise FailedPrecondition(
                f"The job asks for {count} GPUs; its worker may use {len(self._machine.gpus)}, on {self._machine.name}.",
                reason="NO_GPU",
            )
        holder, label = f"{self._owner}:{job.id}", f"{job.kind} job {job.id}"
        wish = GpuWish(holder, label, self._machine.ids, count, self._share)
        if self._in_line != holder:
            self.leave_line()
        self._in_line = holder
        answer = self._leases.take(wish, self._lease_seconds)
        if isinstance(answer, GpuWait):
            # Another worker of this machine is in line for the same job, and says why.
            is_said = any(ticket.wish.label == label for ticket in answer.ahead)
            self.reason = "" if is_said else describe_wait(wish, answer, self._machine.names)
            return None
        self._in_line = self.reason = ""
        names = [name for gpu, name in self._machine.names.items() if gpu in answer.gpus]
        text = f"Runs on {', '.join(names)} ({answer.share:g} of {'it' if len(names) == 1 else 'each'})."
        environ = self._machine.environment(answer.gpus, answer.share)
        return GpuHold(self._leases, answer, self._lease_seconds, environ, text)

    def leave_line(self) -> None:
        """Want nothing any more."""
        holder, self._in_line, self.reason = self._in_line, "", ""
        if not holder:
            return
        try:
            self._leases.release(holder)
        except MartletError as error:
            logger.info("A place in the line for GPUs is left to lapse: %s", error)


class WaitNotes:
    """Puts on record why the first job of a queue waits, and takes it off again when it is no longer so."""

    def __init__(self, jobs: JobStore) -> None:
        self._jobs = jobs
        self._job_id = ""
        self._reason = ""

    def note(self, job: Job, reason: str) -> None:
        """``job``, as it was just read, waits for ``reason`` (empty: others know). Workers of other machines may say other things of the same job:
        each says its own once, so that they don't outshout one another.
        """
        if job.id != self._job_id:
            self.close()
        if not reason:
            return
        if job.id != self._job_id or reason != self._reason or not job.queued_reason:
            self._jobs.note_queued(job.id, reason)
            if reason != self._reason:
                logger.info("Job %s is %s.", job.id, reason)
            self._job_id, self._reason = job.id, reason

    def is_claimed(self, job: Job) -> None:
        """The job waits no more, and its record says nothing of it any longer."""
        if job.id == self._job_id:
            self._job_id = self._reason = ""

    def close(self) -> None:
        """This worker knows no reason any more."""
        job_id, self._job_id, self._reason = self._job_id, "", ""
        try:
            if job_id:
                self._jobs.note_queued(job_id, "")
        except MartletError as error:
            logger.info("Why job %s waited stays on its record: %s", job_id, error)
