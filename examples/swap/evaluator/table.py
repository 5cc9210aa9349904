"""The jobs, in memory: what state they are in and what they said. They end with the process."""

from __future__ import annotations

import base64
import heapq
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from evaluator.errors import Refused, bad_field
from evaluator.stubs import common_pb, jobs_pb

QUEUED, RUNNING = common_pb.JOB_STATE_QUEUED, common_pb.JOB_STATE_RUNNING
PAUSING, PAUSED = common_pb.JOB_STATE_PAUSING, common_pb.JOB_STATE_PAUSED
CANCELLING, CANCELLED = common_pb.JOB_STATE_CANCELLING, common_pb.JOB_STATE_CANCELLED
SUCCEEDED, FAILED = common_pb.JOB_STATE_SUCCEEDED, common_pb.JOB_STATE_FAILED
FINAL = (SUCCEEDED, FAILED, CANCELLED)
_PREFIX = "evaluationJobs/"


class Entry:
    """A job with its tenant, its events, and the answers it has (row and target -> text), which a pause keeps."""

    def __init__(self, tenant: str, job: Any, number: int) -> None:
        self.tenant, self.job, self.number = tenant, job, number
        self.events: list[Any] = []
        self.answers: dict[tuple[int, str], str] = {}


class Table:
    """All jobs. One lock guards them; whoever waits is told of every change."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._entries: dict[str, Entry] = {}
        self._requests: dict[tuple[str, str], tuple[bytes, str]] = {}

    def create(self, tenant: str, job: Any, request_id: str) -> Any:
        """A job like ``job``, queued; the first one again where the request was made before."""
        with self._changed:
            key, wish = (tenant, request_id), job.SerializeToString(deterministic=True)
            if request_id and key in self._requests:
                made, name = self._requests[key]
                if made != wish:
                    raise Refused("ALREADY_EXISTS", "REQUEST_ID_REUSED", f"{request_id!r} made another job: {name}.")
                return self._copy(self._entries[name])
            job.name = _PREFIX + uuid.uuid4().hex
            job.create_time.GetCurrentTime()
            entry = self._entries[job.name] = Entry(tenant, job, len(self._entries))
            if request_id:
                self._requests[key] = wish, job.name
            self._move(entry, QUEUED, "created")
            return self._copy(entry)

    def get(self, tenant: str, name: str) -> Any:
        """The job as it is."""
        with self._changed:
            return self._copy(self._find(tenant, name))

    def list(self, tenant: str, states: list[int], labels: dict[str, str], size: int, token: str) -> tuple[Any, str]:
        """A page of jobs, newest first, and the next token."""
        with self._changed:
            numbers = [entry.number for entry in self._entries.values()]
            below = len(numbers) if not token else read_token(token, numbers)
            found = [
                entry
                for entry in reversed(self._entries.values())
                if entry.number < below
                and entry.tenant == tenant
                and (not states or entry.job.state in states)
                and labels.items() <= dict(entry.job.labels).items()
            ]
            page = found[:size]
            return [self._copy(entry) for entry in page], make_token(page[-1].number) if len(found) > size else ""

    def cancel(self, tenant: str, name: str) -> Any:
        """Stop it for good, at once or when its worker has noticed."""
        return self._steer(tenant, name, "cancelled", {RUNNING: CANCELLING, PAUSING: CANCELLING}, CANCELLED, CANCELLING)

    def pause(self, tenant: str, name: str) -> Any:
        """Give its worker back, at once or when it has noticed."""
        with self._changed:
            entry = self._find(tenant, name)
            if entry.job.state == CANCELLING:
                raise Refused("FAILED_PRECONDITION", "JOB_CANCELLING", f"{name} is being cancelled.")
        return self._steer(tenant, name, "paused", {RUNNING: PAUSING}, PAUSED, PAUSING, PAUSED)

    def resume(self, tenant: str, name: str) -> Any:
        """Queue it again, or let it run on where its worker hadn't noticed the pause."""
        with self._changed:
            entry = self._find(tenant, name)
            if entry.job.state not in (PAUSED, PAUSING):
                raise Refused("FAILED_PRECONDITION", "JOB_NOT_PAUSED", f"{name} is not paused.")
            self._move(entry, QUEUED if entry.job.state == PAUSED else RUNNING, "resumed")
            return self._copy(entry)

    def watch(self, tenant: str, name: str, after: str, is_active: Callable[[], bool]) -> Iterator[Any]:
        """Events behind a cursor, as they come, to the end of the job."""
        with self._changed:
            entry = self._find(tenant, name)
            place = _place_of(entry, after, "after_cursor") + 1 if after else 0
        while is_active():
            with self._changed:
                if place == len(entry.events) and entry.job.state not in FINAL:
                    self._changed.wait(1.0)
                events = entry.events[place:]
                is_over = entry.job.state in FINAL
            yield from events
            place += len(events)
            if is_over and not events:
                return

    def events(self, tenant: str, name: str, size: int, token: str, newest_first: bool) -> tuple[Any, str]:
        """A page of past events, and the next token, which is a cursor."""
        with self._changed:
            entry = self._find(tenant, name)
            events = entry.events[::-1] if newest_first else list(entry.events)
            if token:
                place = _place_of(entry, token, "page_token")
                events = events[len(events) - place if newest_first else place + 1 :]
            page = events[:size]
            return page, page[-1].cursor if len(events) > size else ""

    # What workers call

    def take(self) -> Entry:
        """The next job, running; waits until there is one."""
        with self._changed:
            while True:
                queue = [
                    (-priority_of(entry.job), entry.number, entry)
                    for entry in self._entries.values()
                    if entry.job.state == QUEUED
                ]
                if queue:
                    entry = heapq.nsmallest(1, queue)[0][2]
                    entry.job.attempt += 1
                    if not entry.job.HasField("start_time"):
                        entry.job.start_time.GetCurrentTime()
                    self._move(entry, RUNNING, "a worker took it")
                    return entry
                self._changed.wait()

    def progress(self, entry: Entry, done: int, planned: int) -> bool:
        """Note how far a job is; whether it is to go on."""
        with self._changed:
            progress = entry.job.progress
            progress.step, progress.total_steps, progress.fraction = done, planned, done / max(planned, 1)
            progress.phase = "asking"
            self._touch(entry)
            return entry.job.state == RUNNING

    def settle(self, entry: Entry, result: Any = None, error: Any = None) -> None:
        """What a worker leaves: a result, an error, or neither where it was told to stop."""
        with self._changed:
            state = entry.job.state
            if state == CANCELLING:
                self._move(entry, CANCELLED, "cancelled")
            elif error is not None:
                entry.job.error.CopyFrom(error)
                self._move(entry, FAILED, f"failed: {error.message}")
            elif result is not None:
                entry.job.result.CopyFrom(result)
                self._move(entry, SUCCEEDED, "succeeded")
            elif state == PAUSING:
                self._move(entry, PAUSED, "paused")
            else:  # resumed before the worker let go
                self._move(entry, QUEUED, "queued again")

    # Under the lock

    def _steer(self, tenant: str, name: str, word: str, at_work: dict[int, int], rest: int, *already: int) -> Any:
        with self._changed:
            entry = self._find(tenant, name)
            state = entry.job.state
            if state in FINAL:
                ended = common_pb.JobState.Name(state)
                raise Refused("FAILED_PRECONDITION", "JOB_ENDED", f"{name} can't be {word}: it is {ended}.")
            if state not in already:
                self._move(entry, at_work.get(state, rest), word)
            return self._copy(entry)

    def _find(self, tenant: str, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None or entry.tenant != tenant:
            raise Refused("NOT_FOUND", "JOB_NOT_FOUND", f"There is no job {name!r}.")
        return entry

    def _move(self, entry: Entry, state: int, message: str) -> None:
        job, before = entry.job, entry.job.state
        job.state = state
        if state in FINAL:
            job.end_time.GetCurrentTime()
        if state == CANCELLED:
            job.error.CopyFrom(Refused("CANCELLED", "JOB_CANCELLED", "It was cancelled.").status())
        self._touch(entry)
        event = common_pb.JobEvent(cursor=uuid.uuid4().hex, attempt=job.attempt, message=message)
        event.create_time.CopyFrom(job.update_time)
        event.level = common_pb.EVENT_LEVEL_ERROR if state == FAILED else common_pb.EVENT_LEVEL_INFO
        event.state_change.from_state, event.state_change.to_state = before, state
        entry.events.append(event)

    def _touch(self, entry: Entry) -> None:
        before = entry.job.update_time.ToNanoseconds()
        entry.job.update_time.FromNanoseconds(max(time.time_ns(), before))
        self._changed.notify_all()

    def _copy(self, entry: Entry) -> Any:
        copy = jobs_pb.EvaluationJob()
        copy.CopyFrom(entry.job)
        if copy.state == QUEUED:
            waiting = [other for other in self._entries.values() if other.job.state == QUEUED]
            before = [other for other in waiting if _rank(other) < _rank(entry)]
            copy.progress.queue_position = 1 + len(before)
        return copy


def priority_of(job: Any) -> int:
    """0 (last) to 9 (first)."""
    resources = job.spec.resources
    return resources.priority if resources.HasField("priority") else 5


def make_token(number: int) -> str:
    """A page token."""
    return base64.urlsafe_b64encode(f"n{number}".encode()).decode()


def read_token(token: str, known: list[int]) -> int:
    """What ``make_token`` was given; refused if it isn't one of ``known``."""
    try:
        number = int(base64.urlsafe_b64decode(token.encode()).decode().removeprefix("n"))
    except ValueError:
        number = -1
    if number not in known:
        raise bad_field("page_token", "is not a token of an earlier answer")
    return number


def _rank(entry: Entry) -> tuple[int, int]:
    return -priority_of(entry.job), entry.number


def _place_of(entry: Entry, cursor: str, field: str) -> int:
    for place, event in enumerate(entry.events):
        if event.cursor == cursor:
            return place
    raise bad_field(field, "is no cursor of this job")
