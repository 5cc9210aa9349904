"""An in-memory job store for tests: what ``RedisJobStore`` does, without a server. Both pass ``JobStoreSuite``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from martlet_core import job_rules as rules
from martlet_core.jobs import HELD_STATES, Claim, Job, JobEvent, JobPage, JobState, LeaseSignal, QueueLoad

_TICK = 1e-6  # as on a server, no two writes happen at the same moment


@dataclass
class _Record:
    job: Job
    fingerprint: str
    queue_time: float
    finished: tuple[int, str] | None = None
    events: list[JobEvent] = field(default_factory=list)
    events_expire_time: float = float("inf")


class MemoryJobStore:
    """``JobStore`` in memory. Thread-safe.

    Args:
        clock: seconds since the epoch; give a clock of your own to let leases lapse without waiting.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last_time = 0.0
        self._records: dict[str, _Record] = {}
        self._requests: dict[tuple[str, str, str], str] = {}
        self._leases: dict[str, tuple[str, float]] = {}
        self._event_count = 0
        self._changed = threading.Condition()

    # Creating and reading

    def create(self, job: Job) -> tuple[Job, bool]:
        """See ``JobStore.create``."""
        rules.check_new_job(job)
        digest = rules.fingerprint(job)
        with self._changed:
            known = self._requests.get((job.stage, job.tenant, job.request_id)) if job.request_id else None
            if known:
                if self._records[known].fingerprint != digest:
                    raise rules.request_id_taken(job.request_id, known)
                return self._records[known].job, False
            if job.id in self._records:
                raise rules.job_id_taken(job.id)
            now = self._now()
            record = self._insert(replace(job, create_time=now, update_time=now), digest)
            self._append_state_event(record, None, rules.Move(job.state), "")
            return record.job, True

    def restore(self, job: Job) -> bool:
        """See ``JobStore.restore``."""
        rules.check_stored_job(job)
        digest = rules.fingerprint(job)
        with self._changed:
            if job.id in self._records:
                return False
            self._insert(job, digest)
            return True

    def get(self, job_id: str) -> Job:
        """See ``JobStore.get``."""
        with self._changed:
            return self._record(job_id).job

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
        """See ``JobStore.list``."""
        rules.check_page_size(page_size)
        wanted_labels = dict(labels or {}).items()
        with self._changed:
            jobs = [
                record.job
                for record in self._records.values()
                if (not stage or record.job.stage == stage)
                and (not kind or record.job.kind == kind)
                and (not tenant or record.job.tenant == tenant)
            ]
        jobs.sort(key=lambda job: (job.create_time, job.id), reverse=True)
        if page_token:
            ids = [job.id for job in jobs]
            if page_token not in ids:
                raise rules.unknown_page_token(page_token)
            jobs = jobs[ids.index(page_token) + 1 :]
        fitting = [
            job for job in jobs if (not states or job.state in states) and wanted_labels <= dict(job.labels).items()
        ]
        page = fitting[:page_size]
        return JobPage(page, page[-1].id if len(fitting) > page_size else "")

    def queued(self, stage: str, *, older_than_seconds: float = 0.0) -> Sequence[Job]:
        """See ``JobStore.queued``."""
        with self._changed:
            newest = self._now() - older_than_seconds
            jobs = [
                record.job
                for record in self._records.values()
                if record.job.stage == stage and record.job.state is JobState.QUEUED and record.queue_time <= newest
            ]
        return sorted(jobs, key=_queue_order)

    def queue_position(self, job_id: str) -> int:
        """See ``JobStore.queue_position``."""
        with self._changed:
            job = self._record(job_id).job
            if job.state is not JobState.QUEUED:
                return 0
            return [waiting.id for waiting in self._queue(job.queue)].index(job_id) + 1

    def queue_loads(self, stage: str) -> Sequence[QueueLoad]:
        """See ``JobStore.queue_loads``."""
        with self._changed:
            jobs = [record.job for record in self._records.values() if record.job.stage == stage]
        return [
            QueueLoad(
                queue,
                sum(job.queue == queue and job.state is JobState.QUEUED for job in jobs),
                sum(job.queue == queue and job.state in HELD_STATES for job in jobs),
            )
            for queue in sorted({job.queue for job in jobs})
        ]

    # Requests of users

    def enqueue(self, job_id: str) -> Job:
        """See ``JobStore.enqueue``."""
        return self._request("enqueue", job_id)

    def request_cancel(self, job_id: str) -> Job:
        """See ``JobStore.request_cancel``."""
        return self._request("cancel", job_id)

    def request_pause(self, job_id: str) -> Job:
        """See ``JobStore.request_pause``."""
        return self._request("pause", job_id)

    def request_resume(self, job_id: str) -> Job:
        """See ``JobStore.request_resume``."""
        return self._request("resume", job_id)

    def _request(self, action: str, job_id: str) -> Job:
        with self._changed:
            record = self._record(job_id)
            move = rules.TRANSITIONS[action].get(record.job.state)
            if move is None:
                raise rules.illegal_transition(job_id, record.job.state, action)
            if move.to is not record.job.state:
                self._make_move(record, move)
            return record.job

    # Workers

    def claim(self, job_id: str, owner: str, lease_seconds: float) -> Claim | None:
        """See ``JobStore.claim``."""
        rules.check_lease_seconds(lease_seconds)
        with self._changed:
            return self._claim(self._record(job_id), owner, lease_seconds)

    def claim_next(self, queue: str, owner: str, lease_seconds: float) -> Claim | None:
        """See ``JobStore.claim_next``."""
        rules.check_lease_seconds(lease_seconds)
        with self._changed:
            waiting = self._queue(queue)
            return self._claim(self._record(waiting[0].id), owner, lease_seconds) if waiting else None

    def _claim(self, record: _Record, owner: str, lease_seconds: float) -> Claim | None:
        move = rules.TRANSITIONS["claim"].get(record.job.state)
        if move is None:
            return None
        now = self._now()
        record.job = replace(
            record.job,
            attempt=record.job.attempt + 1,
            lease_owner=owner,
            lease_until=now + lease_seconds,
            start_time=record.job.start_time or now,
        )
        self._make_move(record, move)
        return Claim(record.job, record.job.attempt)

    def first_queued(self, queue: str) -> Job | None:
        """See ``JobStore.first_queued``."""
        with self._changed:
            waiting = self._queue(queue)
            return waiting[0] if waiting else None

    def note_queued(self, job_id: str, reason: str) -> bool:
        """See ``JobStore.note_queued``."""
        with self._changed:
            record = self._record(job_id)
            if record.job.state is not JobState.QUEUED or record.job.queued_reason == reason:
                return False
            record.job = replace(record.job, queued_reason=reason, update_time=self._now())
            if reason:
                self._append_event(record, rules.queued_event(reason, record.job.attempt))
            return True

    def heartbeat(self, job_id: str, token: int, lease_seconds: float) -> LeaseSignal:
        """See ``JobStore.heartbeat``."""
        rules.check_lease_seconds(lease_seconds)
        with self._changed:
            record = self._held_record(job_id, token)
            record.job = replace(record.job, lease_until=self._now() + lease_seconds)
            return rules.SIGNALS[record.job.state]

    def update(
        self,
        job_id: str,
        token: int,
        *,
        progress: Mapping[str, Any] | None = None,
        result: Mapping[str, Any] | None = None,
        checkpoints: Sequence[Mapping[str, Any]] | None = None,
    ) -> Job:
        """See ``JobStore.update``."""
        changes: dict[str, Any] = {}
        if progress is not None:
            changes["progress"] = rules.to_json_value("progress", progress)
        if checkpoints is not None:
            changes["checkpoints"] = rules.to_json_value("checkpoints", checkpoints)
        new_result = rules.to_json_value("result", result or {})
        with self._changed:
            record = self._held_record(job_id, token)
            merged = {**record.job.result, **new_result}
            record.job = replace(record.job, update_time=self._now(), result=merged, **changes)
            return record.job

    def finish(
        self,
        job_id: str,
        token: int,
        state: JobState,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> Job:
        """See ``JobStore.finish``."""
        action = rules.finish_action(job_id, state)
        new_result = rules.to_json_value("result", result or {})
        new_error = rules.to_json_value("error", error) if error else None
        with self._changed:
            record = self._record(job_id)
            job = record.job
            if not job.state.is_held and job.attempt == token and record.finished == (token, action):
                return job
            self._held_record(job_id, token)
            move = rules.TRANSITIONS[action][job.state]
            record.finished = (token, action)
            record.job = replace(job, result={**job.result, **new_result}, error=new_error)
            if error and move.to is JobState.QUEUED:
                move = self._count_lost_attempt(record, move)
            self._make_move(record, move, rules.error_text(error))
            return record.job

    def reap(self, stage: str) -> Sequence[Job]:
        """See ``JobStore.reap``."""
        with self._changed:
            now = self._now()
            lapsed = [
                record
                for record in self._records.values()
                if record.job.stage == stage and record.job.state.is_held and record.job.lease_until <= now
            ]
            for record in sorted(lapsed, key=lambda record: record.job.lease_until):
                move = rules.TRANSITIONS["lapse"][record.job.state]
                if move.to is JobState.QUEUED:
                    move = self._count_lost_attempt(record, move)
                    if move.to is JobState.FAILED:
                        error = rules.attempts_exhausted_error(record.job.lost_attempts)
                        record.job = replace(record.job, error=error)
                self._make_move(record, move)
            return [record.job for record in lapsed]

    def _count_lost_attempt(self, record: _Record, move: rules.Move) -> rules.Move:
        """Count it and return the move to make: ``move``, or the one into FAILED when none is left."""
        lost = record.job.lost_attempts + 1
        record.job = replace(record.job, lost_attempts=lost)
        return rules.TRANSITIONS["exhaust"][record.job.state] if lost >= record.job.max_attempts else move

    # Events

    def append_event(self, job_id: str, event: JobEvent) -> JobEvent:
        """See ``JobStore.append_event``."""
        event = replace(event, data=rules.to_json_value("data", event.data))
        with self._changed:
            return self._append_event(self._record(job_id), event)

    def events(
        self, job_id: str, *, after: str = "", limit: int = 100, newest_first: bool = False
    ) -> Sequence[JobEvent]:
        """See ``JobStore.events``."""
        rules.check_cursor(after)
        rules.check_page_size(limit)
        with self._changed:
            return self._events(job_id, after, limit, newest_first)

    def with_news(self, places: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """See ``JobStore.with_news``."""
        for _, after in places:
            rules.check_cursor(after)
        with self._changed:
            return [
                (job_id, after)
                for job_id, after in places
                if job_id not in self._records or self._events(job_id, after, 1, False)
            ]

    def wait_events(self, job_id: str, *, after: str, timeout_seconds: float) -> Sequence[JobEvent]:
        """See ``JobStore.wait_events``."""
        rules.check_cursor(after)
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while not (events := self._events(job_id, after, 100, False)):
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    return []
            return events

    def expire_events(self, job_id: str, after_seconds: float) -> None:
        """See ``JobStore.expire_events``."""
        with self._changed:
            self._record(job_id).events_expire_time = self._now() + after_seconds

    # Named leases and health

    def acquire_lease(self, name: str, owner: str, lease_seconds: float) -> bool:
        """See ``JobStore.acquire_lease``."""
        rules.check_lease_seconds(lease_seconds)
        with self._changed:
            now = self._now()
            holder, until = self._leases.get(name, ("", 0.0))
            if until > now and holder != owner:
                return False
            self._leases[name] = (owner, now + lease_seconds)
            return True

    def release_lease(self, name: str, owner: str) -> None:
        """See ``JobStore.release_lease``."""
        with self._changed:
            if self._leases.get(name, ("", 0.0))[0] == owner:
                del self._leases[name]

    def ping(self) -> None:
        """See ``JobStore.ping``."""

    # Plumbing; the caller holds the lock.

    def _now(self) -> float:
        self._last_time = max(self._clock(), self._last_time + _TICK)
        return self._last_time

    def _record(self, job_id: str) -> _Record:
        record = self._records.get(job_id)
        if record is None:
            raise rules.unknown_job(job_id)
        return record

    def _held_record(self, job_id: str, token: int) -> _Record:
        record = self._record(job_id)
        if not record.job.state.is_held or record.job.attempt != token:
            raise rules.lease_lost(job_id, token, record.job.state, record.job.attempt)
        return record

    def _queue(self, queue: str) -> list[Job]:
        waiting = (record.job for record in self._records.values() if record.job.queue == queue)
        return sorted((job for job in waiting if job.state is JobState.QUEUED), key=_queue_order)

    def _insert(self, job: Job, digest: str) -> _Record:
        json_fields = ("spec", "progress", "result", "error", "checkpoints")
        values = {name: rules.to_json_value(name, getattr(job, name)) for name in json_fields}
        record = _Record(replace(job, labels=dict(job.labels), **values), digest, queue_time=self._now())
        self._records[job.id] = record
        if job.request_id:
            self._requests.setdefault((job.stage, job.tenant, job.request_id), job.id)
        return record

    def _make_move(self, record: _Record, move: rules.Move, detail: str = "") -> None:
        before, now = record.job.state, self._now()
        changes: dict[str, Any] = {"state": move.to, "update_time": now}
        if before is JobState.QUEUED and move.to is not JobState.QUEUED:
            changes["queued_reason"] = ""
        if before.is_held and not move.to.is_held:
            changes |= {"lease_owner": "", "lease_until": 0.0}
        if move.to.is_final:
            changes["end_time"] = now
        if move.to is JobState.QUEUED:
            record.queue_time = now
        record.job = replace(record.job, **changes)
        self._append_state_event(record, before, move, detail)

    def _append_state_event(self, record: _Record, before: JobState | None, move: rules.Move, detail: str) -> None:
        event = rules.state_event(before, move)
        message = f"{event.message}: {detail}" if detail else event.message
        attempt = record.job.attempt
        self._append_event(record, JobEvent("state", message, level=event.level, attempt=attempt, data=event.data))

    def _append_event(self, record: _Record, event: JobEvent) -> JobEvent:
        self._event_count += 1
        stored = replace(event, cursor=f"{self._event_count}-0", create_time=self._now())
        record.events.append(stored)
        self._changed.notify_all()
        return stored

    def _events(self, job_id: str, after: str, limit: int, newest_first: bool) -> list[JobEvent]:
        record = self._record(job_id)
        if record.events_expire_time <= self._now():
            record.events.clear()
        return list(rules.page_of_events(record.events, after, limit, newest_first=newest_first))


def _queue_order(job: Job) -> tuple[int, float, str]:
    return (-job.priority, job.create_time, job.id)
