"""What the in-memory job store keeps: records, how they change, and their events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from martlet_core import job_rules as rules
from martlet_core.jobs import Job, JobEvent, JobState

_TICK = 1e-6  # as on a server, no two writes happen at the same moment


@dataclass
class Record:
    """A job, and what belongs to it."""

    job: Job
    fingerprint: str
    queue_time: float
    finished: tuple[int, str] | None = None
    events: list[JobEvent] = field(default_factory=list)
    events_expire_time: float = float("inf")


class JobRecords:
    """Jobs' records and events in memory. Thread-safe: whoever changes them holds ``_changed``.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last_time = 0.0
        self._records: dict[str, Record] = {}
        self._requests: dict[tuple[str, str, str], str] = {}
        self._leases: dict[str, tuple[str, float]] = {}
        self._event_count = 0
        self._changed = threading.Condition()

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

    # Plumbing; the caller holds the lock.

    def _now(self) -> float:
        self._last_time = max(self._clock(), self._last_time + _TICK)
        return self._last_time

    def _record(self, job_id: str) -> Record:
        record = self._records.get(job_id)
        if record is None:
            raise rules.unknown_job(job_id)
        return record

    def _held_record(self, job_id: str, token: int) -> Record:
        record = self._record(job_id)
        if not record.job.state.is_held or record.job.attempt != token:
            raise rules.lease_lost(job_id, token, record.job.state, record.job.attempt)
        return record

    def _insert(self, job: Job, digest: str) -> Record:
        json_fields = ("spec", "progress", "result", "error", "checkpoints")
        values = {name: rules.to_json_value(name, getattr(job, name)) for name in json_fields}
        record = Record(replace(job, labels=dict(job.labels), **values), digest, queue_time=self._now())
        self._records[job.id] = record
        if job.request_id:
            self._requests.setdefault((job.stage, job.tenant, job.request_id), job.id)
        return record

    def _make_move(self, record: Record, move: rules.Move, detail: str = "") -> None:
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

    def _append_state_event(self, record: Record, before: JobState | None, move: rules.Move, detail: str) -> None:
        event = rules.state_event(before, move)
        message = f"{event.message}: {detail}" if detail else event.message
        attempt = record.job.attempt
        self._append_event(record, JobEvent("state", message, level=event.level, attempt=attempt, data=event.data))

    def _append_event(self, record: Record, event: JobEvent) -> JobEvent:
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
