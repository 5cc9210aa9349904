"""The rules of a job's life, as data that every job store obeys.

``RedisJobStore`` turns ``TRANSITIONS`` into a Lua table for its scripts, ``MemoryJobStore`` reads it as it is: one
place says which state follows which.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from martlet_core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, LeaseLost, NotFound
from martlet_core.ids import ID_PATTERN, REQUEST_ID_PATTERN
from martlet_core.jobs import Job, JobEvent, JobState, LeaseSignal

S = JobState

#: Why a state changed, by the word that the event carries: what people read.
REASONS: Mapping[str, str] = {
    "CANCEL_REQUESTED": "a cancel was asked for",
    "PAUSE_REQUESTED": "a pause was asked for",
    "RESUME_REQUESTED": "a resume was asked for",
    "GIVEN_BACK": "the worker gave it back",
    "LEASE_LAPSED": "the worker stopped renewing its lease",
    "ATTEMPTS_EXHAUSTED": "no attempts are left",
    "RESTORED": "the job store had lost it",
}
_WARNINGS = frozenset({"GIVEN_BACK", "LEASE_LAPSED", "RESTORED"})


@dataclass(frozen=True)
class Move:
    """Where an action takes a job, and why.

    Attributes:
        to: the state after; the same as before where the action changes nothing.
        reason: key of ``REASONS``; empty when plain.
    """

    to: JobState
    reason: str = ""


#: Action -> state before -> move. A state that is missing makes the action illegal.
TRANSITIONS: Mapping[str, Mapping[JobState, Move]] = {
    "enqueue": {S.VALIDATING: Move(S.QUEUED), S.QUEUED: Move(S.QUEUED)},
    "claim": {S.QUEUED: Move(S.RUNNING)},
    "cancel": {
        S.VALIDATING: Move(S.CANCELLED, "CANCEL_REQUESTED"),
        S.QUEUED: Move(S.CANCELLED, "CANCEL_REQUESTED"),
        S.PAUSED: Move(S.CANCELLED, "CANCEL_REQUESTED"),
        S.RUNNING: Move(S.CANCELLING, "CANCEL_REQUESTED"),
        S.PAUSING: Move(S.CANCELLING, "CANCEL_REQUESTED"),
        S.CANCELLING: Move(S.CANCELLING),
    },
    "pause": {
        S.QUEUED: Move(S.PAUSED, "PAUSE_REQUESTED"),
        S.RUNNING: Move(S.PAUSING, "PAUSE_REQUESTED"),
        S.PAUSING: Move(S.PAUSING),
        S.PAUSED: Move(S.PAUSED),
    },
    "resume": {
        S.PAUSED: Move(S.QUEUED, "RESUME_REQUESTED"),
        S.PAUSING: Move(S.RUNNING, "RESUME_REQUESTED"),
    },
    # What the worker that holds the job may end its attempt with. A cancel that was asked for wins over everything.
    "finish_succeeded": {
        S.RUNNING: Move(S.SUCCEEDED),
        S.PAUSING: Move(S.SUCCEEDED),
        S.CANCELLING: Move(S.CANCELLED, "CANCEL_REQUESTED"),
    },
    "finish_failed": {
        S.RUNNING: Move(S.FAILED),
        S.PAUSING: Move(S.FAILED),
        S.CANCELLING: Move(S.CANCELLED, "CANCEL_REQUESTED"),
    },
    "finish_cancelled": {
        S.RUNNING: Move(S.CANCELLED),
        S.PAUSING: Move(S.CANCELLED),
        S.CANCELLING: Move(S.CANCELLED, "CANCEL_REQUESTED"),
    },
    "finish_paused": {
        S.RUNNING: Move(S.QUEUED, "RESUME_REQUESTED"),  # the pause was taken back while the worker was stopping
        S.PAUSING: Move(S.PAUSED, "PAUSE_REQUESTED"),
        S.CANCELLING: Move(S.CANCELLED, "CANCEL_REQUESTED"),
    },
    "finish_queued": {
        S.RUNNING: Move(S.QUEUED, "GIVEN_BACK"),
        S.PAUSING: Move(S.PAUSED, "PAUSE_REQUESTED"),
        S.CANCELLING: Move(S.CANCELLED, "CANCEL_REQUESTED"),
    },
    "lapse": {
        S.RUNNING: Move(S.QUEUED, "LEASE_LAPSED"),
        S.PAUSING: Move(S.PAUSED, "LEASE_LAPSED"),
        S.CANCELLING: Move(S.CANCELLED, "LEASE_LAPSED"),
    },
    # Takes the place of a move from RUNNING to QUEUED when the lost attempts have reached the job's maximum.
    "exhaust": {S.RUNNING: Move(S.FAILED, "ATTEMPTS_EXHAUSTED")},
}

#: State in which a worker may end its attempt -> action.
FINISH_ACTIONS: Mapping[JobState, str] = {
    state: f"finish_{state.value.lower()}" for state in (S.SUCCEEDED, S.FAILED, S.CANCELLED, S.PAUSED, S.QUEUED)
}

#: What a heartbeat tells the worker, by the job's state.
SIGNALS: Mapping[JobState, LeaseSignal] = {
    S.RUNNING: LeaseSignal.OK,
    S.PAUSING: LeaseSignal.PAUSE,
    S.CANCELLING: LeaseSignal.CANCEL,
}

#: Error of a job whose workers vanished too often; ``{lost_attempts}`` stands for their number.
ATTEMPTS_EXHAUSTED_ERROR: Mapping[str, Any] = {
    "code": "ABORTED",
    "message": "The job was given up: {lost_attempts} attempts ended in a fault, the last one without a word from its "
    "worker, whose lease lapsed. A worker that is killed for want of memory does that; its log says more.",
    "reason": "ATTEMPTS_EXHAUSTED",
    "metadata": {"lost_attempts": "{lost_attempts}"},
    "violations": [],
    "retry_after_seconds": None,
}

_PARTICIPLES = {"cancel": "cancelled", "pause": "paused", "resume": "resumed", "enqueue": "enqueued"}
_CURSOR = re.compile(r"\d{1,19}-\d{1,19}")
MAX_PAGE_SIZE = 1000


@dataclass(frozen=True)
class StateEvent:
    """What the event of a state change says.

    Attributes:
        level: ``info``, ``warn`` or ``error``.
        message: text for people.
        data: {from, to, reason}, JSON-ready.
    """

    level: str
    message: str
    data: Mapping[str, str]


def state_event(before: JobState | None, move: Move) -> StateEvent:
    """The event of a move; ``before`` is None at creation."""
    level = "error" if move.to is S.FAILED else "warn" if move.reason in _WARNINGS else "info"
    message = f"{before.value} -> {move.to.value}" if before else f"created {move.to.value}"
    if move.reason:
        message += f": {REASONS[move.reason]}"
    return StateEvent(
        level, message, {"from": before.value if before else "", "to": move.to.value, "reason": move.reason}
    )


def queued_event(reason: str, attempt: int = 0) -> JobEvent:
    """The event that says why a job waits."""
    return JobEvent("log", reason, attempt=attempt, data={"source": "worker"})


def restored_event(state: JobState, reason: str) -> StateEvent:
    """The event of a job that came back in a state which it had, or would have, for that reason."""
    level = "warn" if reason in _WARNINGS else "info"
    message = f"restored {state.value}: {REASONS[reason]}"
    return StateEvent(level, message, {"from": "", "to": state.value, "reason": reason})


def attempts_exhausted_error(lost_attempts: int) -> dict[str, Any]:
    """``ATTEMPTS_EXHAUSTED_ERROR`` with the number filled in."""
    return json.loads(json.dumps(ATTEMPTS_EXHAUSTED_ERROR).replace("{lost_attempts}", str(lost_attempts)))


def fingerprint(job: Job) -> str:
    """What must agree for two creations with one request id to be the same request: kind and spec."""
    canonical = json.dumps([job.kind, to_json_value("spec", job.spec)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def to_json(field: str, value: Any) -> str:
    """``value`` as JSON text. InvalidArgument if it isn't JSON-ready."""
    try:
        return json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InvalidArgument.field(
            field, f"can't be written as JSON ({error}); use dicts, lists, strings and numbers"
        ) from None


def to_json_value(field: str, value: Any) -> Any:
    """A deep copy of ``value`` as JSON gives it back (tuples become lists). InvalidArgument if it isn't JSON-ready."""
    return json.loads(to_json(field, value))


def check_new_job(job: Job) -> None:
    """InvalidArgument unless a store may take the job in with ``create``."""
    check_stored_job(job)
    if job.state not in (S.VALIDATING, S.QUEUED):
        raise InvalidArgument.field("state", f"a new job is VALIDATING or QUEUED, not {job.state.value}")


def check_stored_job(job: Job) -> None:
    """InvalidArgument unless the fields that keys and queues are made of are sound."""
    if not ID_PATTERN.fullmatch(job.id):
        raise InvalidArgument.field("id", f"{job.id!r} doesn't match {ID_PATTERN.pattern}")
    for field in ("stage", "kind", "tenant", "queue"):
        if not getattr(job, field):
            raise InvalidArgument.field(field, "must not be empty")
    for field in ("stage", "kind"):
        if not re.fullmatch(r"[a-z0-9_-]+", getattr(job, field)):
            raise InvalidArgument.field(field, f"{getattr(job, field)!r}: only a-z, 0-9, '_' and '-' may be used")
    if job.request_id and not REQUEST_ID_PATTERN.fullmatch(job.request_id):
        raise InvalidArgument.field("request_id", f"{job.request_id!r} doesn't match {REQUEST_ID_PATTERN.pattern}")
    if not 0 <= job.priority <= 9:
        raise InvalidArgument.field("priority", f"{job.priority} is outside 0 (low) to 9 (high)")
    if job.max_attempts < 1:
        raise InvalidArgument.field("max_attempts", f"{job.max_attempts} is less than 1")


def check_lease_seconds(seconds: float) -> None:
    """InvalidArgument unless the lease is longer than nothing."""
    if not seconds > 0:
        raise InvalidArgument.field("lease_seconds", f"{seconds} is not greater than 0")


def check_page_size(page_size: int) -> None:
    """InvalidArgument unless 1 <= page_size <= 1000."""
    if not 1 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidArgument.field("page_size", f"{page_size} is outside 1 to {MAX_PAGE_SIZE}")


def check_cursor(cursor: str) -> None:
    """InvalidArgument unless the cursor is empty or came from an event."""
    if cursor and not _CURSOR.fullmatch(cursor):
        raise InvalidArgument.field("after", f"{cursor!r} is not a cursor of an event")


def page_of_events(
    events: Sequence[JobEvent], after: str, limit: int, *, newest_first: bool = False
) -> Sequence[JobEvent]:
    """Up to ``limit`` of events that are in order: those behind ``after``, or those before it, newest first."""
    if newest_first:
        events = events[: bisect_left(events, _place(after), key=_place_of)] if after else events
        return events[::-1][:limit]
    start = bisect_right(events, _place(after), key=_place_of) if after else 0
    return events[start : start + limit]


def _place_of(event: JobEvent) -> tuple[int, int]:
    return _place(event.cursor)


def _place(cursor: str) -> tuple[int, int]:
    """What orders cursors: the two numbers in them."""
    first, second = cursor.split("-")
    return int(first), int(second)


def finish_action(job_id: str, state: JobState) -> str:
    """The action that ends an attempt with ``state``. FailedPrecondition if no attempt ends so."""
    action = FINISH_ACTIONS.get(state)
    if action is None:
        allowed = ", ".join(s.value for s in FINISH_ACTIONS)
        raise FailedPrecondition(
            f"An attempt at job {job_id} can't end as {state.value}; it may end as {allowed}.",
            reason="ILLEGAL_TRANSITION",
            metadata={"job_id": job_id, "state": state.value},
        )
    return action


def unknown_job(job_id: str) -> NotFound:
    """The error for a job that isn't there."""
    return NotFound(f"There is no job {job_id!r}.", reason="JOB_NOT_FOUND", metadata={"job_id": job_id})


def unknown_page_token(token: str) -> InvalidArgument:
    """The error for a page token that no page gave."""
    return InvalidArgument.field("page_token", f"{token!r} is neither a token of this list nor the id of a job in it")


def illegal_transition(job_id: str, state: JobState, action: str) -> FailedPrecondition:
    """The error for an action that the job's state forbids."""
    wanted = _PARTICIPLES.get(action, action)
    allowed = ", ".join(s.value for s in TRANSITIONS[action])
    return FailedPrecondition(
        f"Job {job_id} is {state.value}; only a job that is {allowed} can be {wanted}.",
        reason="ILLEGAL_TRANSITION",
        metadata={"job_id": job_id, "state": state.value, "action": action},
    )


def lease_lost(job_id: str, token: int, state: JobState, attempt: int) -> LeaseLost:
    """The error for a fencing token that isn't the current one, or a job that nobody holds."""
    return LeaseLost(
        f"Attempt {token} no longer holds job {job_id}, which is {state.value} in attempt {attempt}.",
        metadata={"job_id": job_id, "state": state.value, "attempt": str(attempt), "token": str(token)},
    )


def request_id_taken(request_id: str, job_id: str) -> AlreadyExists:
    """The error for a request id that made another job."""
    return AlreadyExists(
        f"Request id {request_id!r} made job {job_id} with another spec; use a new request id for a new job.",
        reason="REQUEST_ID_TAKEN",
        metadata={"request_id": request_id, "job_id": job_id},
    )


def job_id_taken(job_id: str) -> AlreadyExists:
    """The error for a job id that is in use."""
    return AlreadyExists(f"There is a job {job_id!r} already.", reason="JOB_ID_TAKEN", metadata={"job_id": job_id})


def error_text(error: Mapping[str, Any] | None) -> str:
    """The text of an error dict for a state event; empty when there is no error."""
    return str(error.get("message", "")) if error else ""
