"""Jobs as values, and the store that owns the truth about them.

A ``Job`` is immutable; a ``JobStore`` changes it by compare-and-set only. Two stores pass the same test suite:
``martlet_core.job_store.RedisJobStore`` and ``martlet_core.testing.job_store.MemoryJobStore``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol


class JobState(str, Enum):
    """Life cycle of a job; the names are those of ``martlet.common.v1.JobState`` without the prefix."""

    VALIDATING = "VALIDATING"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """True for states that nothing leaves."""
        return self in FINAL_STATES

    @property
    def is_held(self) -> bool:
        """True for states in which a worker holds the job's lease."""
        return self in HELD_STATES


FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
HELD_STATES = frozenset({JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING})


@dataclass(frozen=True)
class Job:
    """One requested piece of work, as the store knows it.

    Times are seconds since the epoch by the store's clock; 0.0 means "not yet".

    Attributes:
        id: server-made, unique over all stages, ``[a-z0-9]{1,64}``.
        stage: ``trainer``, ``quantizer``, ``evaluator``.
        kind: ``training``, ``merge``, ... ; the stage's worker picks its handler by it.
        tenant: owner; every read is checked against it.
        spec: what was asked for (JSON-ready); also at ``jobs/<id>/spec.json`` in the object store.
        queue: name of the queue it waits in (``trainer``, ``quantizer-awq``).
        priority: 0 (low) to 9 (high).
        attempt: executions so far; the current value is the fencing token.
        max_attempts: lost attempts before the job fails for good.
        lost_attempts: executions that ended in a fault (a crash, a lapsed lease); those given back (pause, preemption,
            a worker's shutdown) don't count.
        lease_owner: worker that holds it; empty when none does.
        lease_until: when the lease ends unless renewed.
        queued_reason: why no worker has it although it is the first of its queue, for people; empty when there is no
            more to say than that it is QUEUED.
        progress: newest progress (step, total_steps, metrics, eta_seconds, phase), JSON-ready.
        result: (partial) result, JSON-ready.
        error: ``MartletError.to_dict()`` of the last failure; None when there is none.
        checkpoints: committed checkpoints that are kept, oldest first: {artifact_id, step, create_time, metrics,
            is_best}.
    """

    id: str
    stage: str
    kind: str
    tenant: str
    spec: Mapping[str, Any]
    queue: str
    state: JobState = JobState.QUEUED
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    priority: int = 5
    attempt: int = 0
    max_attempts: int = 5
    lost_attempts: int = 0
    lease_owner: str = ""
    lease_until: float = 0.0
    queued_reason: str = ""
    create_time: float = 0.0
    start_time: float = 0.0
    end_time: float = 0.0
    update_time: float = 0.0
    progress: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    checkpoints: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class JobEvent:
    """One thing a job said.

    Attributes:
        cursor: opaque place in the job's stream, ordered; empty until stored.
        create_time: seconds since the epoch by the store's clock; 0.0 until stored.
        type: ``state``, ``metrics``, ``checkpoint`` or ``log``.
        level: ``info``, ``warn`` or ``error``.
        attempt: attempt that said it; 0 when none had begun.
        message: text for people.
        data: details by type: state {from, to, reason}; metrics {step, values}; checkpoint {step, artifact_id};
            log {source}.
    """

    type: str
    message: str
    level: str = "info"
    attempt: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    cursor: str = ""
    create_time: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A worker's hold on a job; every later write needs it.

    Attributes:
        job: the job as claimed (state RUNNING).
        token: the fencing token (= ``job.attempt``).
    """

    job: Job
    token: int


class LeaseSignal(str, Enum):
    """What a heartbeat answers."""

    OK = "ok"
    PAUSE = "pause"
    CANCEL = "cancel"


@dataclass(frozen=True)
class JobPage:
    """A page of jobs, newest first; ``next_page_token`` is empty at the end."""

    jobs: Sequence[Job]
    next_page_token: str = ""


@dataclass(frozen=True)
class QueueLoad:
    """How much there is to do in a queue.

    Attributes:
        queue: its name.
        queued: jobs that wait in it.
        held: jobs of it that a worker holds (RUNNING, PAUSING, CANCELLING).
    """

    queue: str
    queued: int
    held: int


class JobStore(Protocol):
    """Owner of the truth about jobs. Thread-safe. Methods raise ``martlet_core.errors`` and nothing else:
    NotFound for an unknown job, LeaseLost for a stale token, FailedPrecondition for an illegal transition,
    Unavailable when the server doesn't answer.
    """

    def create(self, job: Job) -> tuple[Job, bool]:
        """Insert a job (VALIDATING or QUEUED) and return (job, True); or, if its tenant, stage and ``request_id`` are
        known, (the job made then, False). AlreadyExists if that request id was used with another spec or kind."""
        ...

    def get(self, job_id: str) -> Job:
        """The job."""
        ...

    def list(
        self,
        *,
        stage: str | None = None,
        kind: str | None = None,
        tenant: str | None = None,
        states: Sequence[JobState] = (),
        labels: Mapping[str, str] | None = None,
        page_size: int = 20,
        page_token: str = "",
    ) -> JobPage:
        """Jobs, newest first; ``page_token`` may also be the id of the last job seen."""
        ...

    def enqueue(self, job_id: str) -> Job:
        """VALIDATING -> QUEUED. QUEUED stays. FailedPrecondition otherwise."""
        ...

    def claim(self, job_id: str, owner: str, lease_seconds: float) -> Claim | None:
        """QUEUED -> RUNNING with a new attempt and a lease; None if it isn't QUEUED (someone has it, or it is over)."""
        ...

    def claim_next(self, queue: str, owner: str, lease_seconds: float) -> Claim | None:
        """Claim the first job of a queue by priority, then age; None if it is empty."""
        ...

    def first_queued(self, queue: str) -> Job | None:
        """The job that ``claim_next`` would claim; None if the queue is empty."""
        ...

    def note_queued(self, job_id: str, reason: str) -> bool:
        """Set a QUEUED job's ``queued_reason``, and append it as an event unless it is empty. False, and nothing done, if
        the job isn't QUEUED or the reason is the same as before. The reason goes when the job leaves QUEUED.
        """
        ...

    def heartbeat(self, job_id: str, token: int, lease_seconds: float) -> LeaseSignal:
        """Renew the lease and learn whether to go on, pause or cancel. LeaseLost if the token is stale."""
        ...

    def update(
        self,
        job_id: str,
        token: int,
        *,
        progress: Mapping[str, Any] | None = None,
        result: Mapping[str, Any] | None = None,
        checkpoints: Sequence[Mapping[str, Any]] | None = None,
    ) -> Job:
        """Replace the given parts (``result`` is merged key by key). LeaseLost if the token is stale."""
        ...

    def finish(
        self,
        job_id: str,
        token: int,
        state: JobState,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> Job:
        """Held -> SUCCEEDED, FAILED, CANCELLED, PAUSED or QUEUED (given back), with the current token only.

        Look at the state of the answer: a job whose cancel was asked for becomes CANCELLED whatever is given; one
        whose pause was asked for becomes PAUSED instead of QUEUED, and the other way round when the pause was
        taken back. QUEUED with an ``error`` counts as a lost attempt, and becomes FAILED when
        ``max_attempts`` are lost; without one it costs nothing. Repeating a call whose answer was lost on the
        way gives the same answer.
        """
        ...

    def request_cancel(self, job_id: str) -> Job:
        """VALIDATING, QUEUED, PAUSED -> CANCELLED; RUNNING, PAUSING -> CANCELLING. CANCELLING stays. FailedPrecondition
        in a final state."""
        ...

    def request_pause(self, job_id: str) -> Job:
        """QUEUED -> PAUSED; RUNNING -> PAUSING. PAUSED and PAUSING stay. FailedPrecondition otherwise."""
        ...

    def request_resume(self, job_id: str) -> Job:
        """PAUSED -> QUEUED at the place its age gives it; PAUSING -> RUNNING. FailedPrecondition otherwise."""
        ...

    def reap(self, stage: str) -> Sequence[Job]:
        """Handle lapsed leases: RUNNING -> QUEUED (or FAILED when ``max_attempts`` were lost), PAUSING -> PAUSED,
        CANCELLING -> CANCELLED. Returns the jobs changed. A worker whose lease lapsed may still renew it or finish
        until this was called."""
        ...

    def queued(self, stage: str, *, older_than_seconds: float = 0.0) -> Sequence[Job]:
        """QUEUED jobs of a stage, by priority, then age, for re-ringing; only those that have been QUEUED for at least
        ``older_than_seconds``."""
        ...

    def queue_position(self, job_id: str) -> int:
        """Place in its queue, counted from 1; 0 when not queued."""
        ...

    def queue_loads(self, stage: str) -> Sequence[QueueLoad]:
        """The load of every queue of a stage that ever had a job, by name."""
        ...

    def restore(self, job: Job) -> bool:
        """Put a job back as it is (disaster recovery from the object store); False if the id is there already."""
        ...

    def append_event(self, job_id: str, event: JobEvent) -> JobEvent:
        """Store an event; returns it with cursor and time. State changes append theirs by themselves, atomically."""
        ...

    def events(
        self, job_id: str, *, after: str = "", limit: int = 100, newest_first: bool = False
    ) -> Sequence[JobEvent]:
        """Events behind ``after`` (a cursor), oldest first; or before ``after``, newest first. ``limit``: 1 to 1000."""
        ...

    def with_news(self, places: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """Those of the places (job id, cursor) behind which there is an event, or whose job is gone; in their order.
        Cheap: it is asked several times a second for all jobs that someone watches."""
        ...

    def wait_events(self, job_id: str, *, after: str, timeout_seconds: float) -> Sequence[JobEvent]:
        """Like ``events``, but waits up to ``timeout_seconds`` for the first one; empty on time-out."""
        ...

    def expire_events(self, job_id: str, after_seconds: float) -> None:
        """Drop the job's events after that time: to be called once they are archived. The job itself stays."""
        ...

    def acquire_lease(self, name: str, owner: str, lease_seconds: float) -> bool:
        """Take or renew a named lease (leader election); False while another owner holds it."""
        ...

    def release_lease(self, name: str, owner: str) -> None:
        """Give a named lease back if ``owner`` holds it."""
        ...

    def ping(self) -> None:
        """Unavailable if the store doesn't answer."""
        ...
