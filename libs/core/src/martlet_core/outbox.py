"""Carries what a running job says to the job store, in order, without ever holding the job up."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from martlet_core.backoff import GaveUp, retry_unavailable
from martlet_core.errors import LeaseLost, MartletError, NotFound
from martlet_core.jobs import Claim, JobEvent, JobStore

logger = logging.getLogger(__name__)

#: Events kept while the store is unreachable; beyond it log lines are dropped and counted.
_MOST_WAITING = 20_000
#: Progress is a snapshot: newer ones replace older ones, and it is written at most this often.
_PROGRESS_SECONDS = 0.5
_FLUSH_POLL_SECONDS = 0.1


class Outbox:
    """Queue of one attempt's events and progress, emptied by a thread.

    Args:
        store: where they go.
        claim: the hold on the job.
        on_lost: called when the store refuses the claim's token.
    """

    def __init__(self, store: JobStore, claim: Claim, *, on_lost: Callable[[], None]) -> None:
        self._store = store
        self._claim = claim
        self._on_lost = on_lost
        self._events: deque[JobEvent] = deque()
        self._progress: dict[str, Any] = dict(claim.job.progress)
        self._result: dict[str, Any] = {}
        self._dirty = False
        self._busy = False
        self._urgent = False
        self._dropped = 0
        self._abandoned = False
        self._closed = False
        self._changed = threading.Condition()
        self._written_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"outbox-{claim.job.id}", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def event(
        self, event_type: str, message: str, *, level: str = "info", data: Mapping[str, Any] | None = None
    ) -> None:
        """Queue an event of this attempt."""
        event = JobEvent(event_type, message, level=level, attempt=self._claim.token, data=dict(data or {}))
        with self._changed:
            if len(self._events) >= _MOST_WAITING and event_type == "log":
                self._dropped += 1
                return
            self._events.append(event)
            self._changed.notify_all()

    def log(self, message: str, *, level: str = "info") -> None:
        """Queue a log line of the worker's own."""
        self.event("log", message, level=level, data={"source": "worker"})

    def progress(self, **changes: Any) -> None:
        """Change parts of the progress; a change of phase is written at once."""
        with self._changed:
            self._urgent = self._urgent or changes.get("phase", self._progress.get("phase")) != self._progress.get(
                "phase"
            )
            self._progress.update(changes)
            self._dirty = True
            self._changed.notify_all()

    def current_progress(self) -> dict[str, Any]:
        """A copy of the newest progress."""
        with self._changed:
            return dict(self._progress)

    def partial_result(self, values: Mapping[str, Any]) -> None:
        """Merge values into the job's result."""
        with self._changed:
            self._result.update(values)
            self._urgent = self._dirty = True
            self._changed.notify_all()

    def flush(self, timeout_seconds: float, *, give_up: Callable[[], bool]) -> bool:
        """Wait until all was sent; False if that took too long, or ``give_up`` became true, or the job was lost."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while self._events or self._dirty or self._busy:
                if self._abandoned or give_up() or time.monotonic() > deadline:
                    return False
                self._urgent = True
                self._changed.notify_all()
                self._changed.wait(_FLUSH_POLL_SECONDS)
        return True

    def close(self) -> None:
        """Stop the thread; what was not sent by now is lost."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, self._seconds_to_progress())
                if self._closed or self._abandoned:
                    return
                events, progress, result = self._take()
                self._busy = True
            try:
                self._send(events, progress, result)
            except GaveUp:
                return
            except (LeaseLost, NotFound):
                self._abandon()
                return
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _has_work(self) -> bool:
        return self._closed or bool(self._events) or (self._dirty and (self._urgent or self._progress_is_due()))

    def _progress_is_due(self) -> bool:
        return time.monotonic() - self._written_at >= _PROGRESS_SECONDS

    def _seconds_to_progress(self) -> float | None:
        if not self._dirty:
            return None
        return max(0.0, self._written_at + _PROGRESS_SECONDS - time.monotonic())

    def _take(self) -> tuple[list[JobEvent], dict[str, Any] | None, dict[str, Any] | None]:
        events = list(self._events)
        self._events.clear()
        if self._dropped:
            text = f"{self._dropped} log lines were dropped while the job store did not answer."
            events.append(JobEvent("log", text, level="warn", attempt=self._claim.token, data={"source": "worker"}))
            self._dropped = 0
        if not self._dirty or not (self._urgent or self._progress_is_due()):
            return events, None, None
        progress, result = dict(self._progress), dict(self._result)
        self._result.clear()
        self._dirty = self._urgent = False
        self._written_at = time.monotonic()
        return events, progress, result

    def _send(self, events: list[JobEvent], progress: dict[str, Any] | None, result: dict[str, Any] | None) -> None:
        job_id, token = self._claim.job.id, self._claim.token
        for event in events:
            self._retry("Storing an event", lambda event=event: self._store.append_event(job_id, event))
        if progress is not None:
            self._retry(
                "Storing progress",
                lambda: self._store.update(job_id, token, progress=progress, result=result or None),
            )

    def _retry(self, what: str, call: Callable[[], object]) -> None:
        try:
            retry_unavailable(what, call, give_up=lambda: self._closed)
        except (LeaseLost, NotFound):
            raise
        except MartletError as error:
            logger.error("%s of job %s was refused: %s", what, self._claim.job.id, error)

    def _abandon(self) -> None:
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()
        self._on_lost()
