"""Which state follows which: the tables are written from the contract (job.proto), not from the code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from martlet_core.errors import FailedPrecondition, LeaseLost
from martlet_core.jobs import FINAL_STATES, HELD_STATES, Job, JobState, JobStore, LeaseSignal
from martlet_core.testing.job_store_suite.base import (
    LONG_LEASE,
    SHORT_LEASE,
    PassTime,
    StoreCases,
    claim,
    create,
    job_in,
)

S = JobState

_ACTIONS: dict[str, Callable[[JobStore, str], Job]] = {
    "enqueue": lambda store, job_id: store.enqueue(job_id),
    "cancel": lambda store, job_id: store.request_cancel(job_id),
    "pause": lambda store, job_id: store.request_pause(job_id),
    "resume": lambda store, job_id: store.request_resume(job_id),
}

#: action: {state before: state after}; what isn't named is illegal.
_LEGAL: dict[str, dict[JobState, JobState]] = {
    "enqueue": {S.VALIDATING: S.QUEUED, S.QUEUED: S.QUEUED},
    "cancel": {
        S.VALIDATING: S.CANCELLED,
        S.QUEUED: S.CANCELLED,
        S.RUNNING: S.CANCELLING,
        S.PAUSING: S.CANCELLING,
        S.PAUSED: S.CANCELLED,
        S.CANCELLING: S.CANCELLING,
    },
    "pause": {S.QUEUED: S.PAUSED, S.RUNNING: S.PAUSING, S.PAUSING: S.PAUSING, S.PAUSED: S.PAUSED},
    "resume": {S.PAUSED: S.QUEUED, S.PAUSING: S.RUNNING},
}

#: (state before, state the worker asks for, state after)
_FINISHES = [
    (S.RUNNING, S.SUCCEEDED, S.SUCCEEDED),
    (S.RUNNING, S.FAILED, S.FAILED),
    (S.RUNNING, S.CANCELLED, S.CANCELLED),
    (S.RUNNING, S.PAUSED, S.QUEUED),
    (S.RUNNING, S.QUEUED, S.QUEUED),
    (S.PAUSING, S.SUCCEEDED, S.SUCCEEDED),
    (S.PAUSING, S.FAILED, S.FAILED),
    (S.PAUSING, S.CANCELLED, S.CANCELLED),
    (S.PAUSING, S.PAUSED, S.PAUSED),
    (S.PAUSING, S.QUEUED, S.PAUSED),
    (S.CANCELLING, S.SUCCEEDED, S.CANCELLED),
    (S.CANCELLING, S.FAILED, S.CANCELLED),
    (S.CANCELLING, S.CANCELLED, S.CANCELLED),
    (S.CANCELLING, S.PAUSED, S.CANCELLED),
    (S.CANCELLING, S.QUEUED, S.CANCELLED),
]


class StateCases(StoreCases):
    """Which state follows which."""

    @pytest.mark.parametrize(("action", "before"), [(action, before) for action in _ACTIONS for before in JobState])
    def test_request(self, store: JobStore, action: str, before: JobState) -> None:
        job, _ = job_in(store, before)
        events = len(store.events(job.id))
        after = _LEGAL[action].get(before)
        if after is None:
            with pytest.raises(FailedPrecondition) as caught:
                _ACTIONS[action](store, job.id)
            assert caught.value.metadata["state"] == before.value
            after = before
        else:
            assert _ACTIONS[action](store, job.id).state is after
        assert store.get(job.id).state is after
        said = [event.data for event in store.events(job.id)[events:]]
        if after is before:
            assert said == []
        else:
            assert [(data["from"], data["to"]) for data in said] == [(before.value, after.value)]

    @pytest.mark.parametrize("before", JobState)
    def test_claim(self, store: JobStore, before: JobState) -> None:
        job, token = job_in(store, before)
        claimed = store.claim(job.id, "worker-2", LONG_LEASE)
        if before is S.QUEUED:
            assert claimed
            assert claimed.job == store.get(job.id)
            assert (claimed.job.state, claimed.job.attempt, claimed.token) == (S.RUNNING, 1, 1)
            assert claimed.job.lease_owner == "worker-2"
            assert claimed.job.start_time >= claimed.job.create_time
            assert claimed.job.lease_until == pytest.approx(claimed.job.update_time + LONG_LEASE, abs=1)
        else:
            assert claimed is None
            assert store.get(job.id) == job
            assert store.get(job.id).attempt == token

    @pytest.mark.parametrize(("before", "wanted", "after"), _FINISHES)
    def test_finish(self, store: JobStore, before: JobState, wanted: JobState, after: JobState) -> None:
        job, token = job_in(store, before)
        finished = store.finish(job.id, token, wanted, result={"model": "m"})
        assert finished == store.get(job.id)
        assert finished.state is after
        assert finished.result == {"model": "m"}
        assert (finished.lease_owner, finished.lease_until) == ("", 0.0)
        assert (finished.end_time > 0) == (after in FINAL_STATES)
        assert (store.queue_position(job.id) == 1) == (after is S.QUEUED)

    @pytest.mark.parametrize("wanted", [S.VALIDATING, S.RUNNING, S.PAUSING, S.CANCELLING])
    def test_no_attempt_ends_in_a_passing_state(self, store: JobStore, wanted: JobState) -> None:
        job, token = job_in(store, S.RUNNING)
        with pytest.raises(FailedPrecondition, match=wanted.value):
            store.finish(job.id, token, wanted)
        assert store.get(job.id) == job

    @pytest.mark.parametrize("before", [state for state in JobState if state not in HELD_STATES])
    @pytest.mark.parametrize("wanted", [S.SUCCEEDED, S.QUEUED])
    def test_nobody_finishes_a_job_that_nobody_holds(self, store: JobStore, before: JobState, wanted: JobState) -> None:
        job, token = job_in(store, before)
        if before is wanted is S.SUCCEEDED:
            assert store.finish(job.id, token, wanted) == job  # the same word again
        else:
            with pytest.raises(LeaseLost):
                store.finish(job.id, token, wanted)
        assert store.get(job.id) == job

    @pytest.mark.parametrize(
        ("before", "after"), [(S.RUNNING, S.QUEUED), (S.PAUSING, S.PAUSED), (S.CANCELLING, S.CANCELLED)]
    )
    def test_lapsed_lease(self, store: JobStore, pass_time: PassTime, before: JobState, after: JobState) -> None:
        job, _ = job_in(store, before, lease_seconds=SHORT_LEASE)
        pass_time(SHORT_LEASE * 2)
        reaped = store.reap("trainer")
        assert [(j.id, j.state) for j in reaped] == [(job.id, after)]
        assert reaped[0] == store.get(job.id)
        assert reaped[0].lease_owner == ""
        assert (reaped[0].end_time > 0) == (after in FINAL_STATES)
        last = store.events(job.id)[-1]
        assert last.data == {"from": before.value, "to": after.value, "reason": "LEASE_LAPSED"}
        assert last.level == "warn"
        assert store.reap("trainer") == []

    @pytest.mark.parametrize(
        ("state", "signal"),
        [(S.RUNNING, LeaseSignal.OK), (S.PAUSING, LeaseSignal.PAUSE), (S.CANCELLING, LeaseSignal.CANCEL)],
    )
    def test_heartbeat_tells_what_to_do(self, store: JobStore, state: JobState, signal: LeaseSignal) -> None:
        job, token = job_in(store, state)
        assert store.heartbeat(job.id, token, LONG_LEASE * 2) is signal
        assert store.get(job.id).lease_until > job.lease_until
        assert store.get(job.id).state is state

    def test_cancel_wins_over_pause(self, store: JobStore) -> None:
        job, token = job_in(store, S.PAUSING)
        store.request_cancel(job.id)
        assert store.heartbeat(job.id, token, LONG_LEASE) is LeaseSignal.CANCEL
        for request in (store.request_pause, store.request_resume):
            with pytest.raises(FailedPrecondition):
                request(job.id)
        assert store.finish(job.id, token, S.PAUSED).state is S.CANCELLED

    def test_pause_that_is_taken_back_lets_the_worker_go_on(self, store: JobStore) -> None:
        job, token = job_in(store, S.PAUSING)
        assert store.request_resume(job.id).state is S.RUNNING
        assert store.heartbeat(job.id, token, LONG_LEASE) is LeaseSignal.OK

    def test_paused_job_resumes_with_a_new_attempt_and_keeps_what_it_has(self, store: JobStore) -> None:
        job, token = job_in(store, S.PAUSING)
        store.update(job.id, token, progress={"step": 4}, checkpoints=[{"step": 4}])
        paused = store.finish(job.id, token, S.PAUSED)
        assert store.request_resume(job.id).state is S.QUEUED
        again = claim(store, job)
        assert again.token == 2
        assert again.job.progress == {"step": 4}
        assert again.job.checkpoints == [{"step": 4}]
        assert again.job.start_time == paused.start_time
        assert again.job.lost_attempts == 0

    def test_error_of_a_failed_job_is_kept_and_said(self, store: JobStore) -> None:
        job = create(store)
        token = claim(store, job).token
        error = {"code": "INTERNAL", "message": "CUDA out of memory", "metadata": {}, "violations": []}
        assert store.finish(job.id, token, S.FAILED, error=error).error == error
        assert store.get(job.id).error == error
        last = store.events(job.id)[-1]
        assert "CUDA out of memory" in last.message
        assert (last.level, last.attempt) == ("error", 1)
