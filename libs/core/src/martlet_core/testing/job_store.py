"""An in-memory job store for tests: what ``RedisJobStore`` does, without a server. Both pass ``JobStoreSuite``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from martlet_core import job_rules as rules
from martlet_core.jobs import HELD_STATES, Claim, Job, JobPage, JobState, LeaseSignal, QueueLoad
from martlet_core.testing.job_records import JobRecords, Record


class MemoryJobStore(JobRecords):
    """``JobStore`` in memory. Thread-safe.

    Args:
        clock: seconds since the epoch; give a clock of your own to let leases lapse without waiting.
    """

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

    def _claim(self, record: Record, owner: str, lease_seconds: float) -> Claim | None:
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

    def _count_lost_attempt(self, record: Record, move: rules.Move) -> rules.Move:
        """Count it and return the move to make: ``move``, or the one into FAILED when none is left."""
        lost = record.job.lost_attempts + 1
        record.job = replace(record.job, lost_attempts=lost)
        return rules.TRANSITIONS["exhaust"][record.job.state] if lost >= record.job.max_attempts else move

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

    def _queue(self, queue: str) -> list[Job]:
        waiting = (record.job for record in self._records.values() if record.job.queue == queue)
        return sorted((job for job in waiting if job.state is JobState.QUEUED), key=_queue_order)


def _queue_order(job: Job) -> tuple[int, float, str]:
    return (-job.priority, job.create_time, job.id)
