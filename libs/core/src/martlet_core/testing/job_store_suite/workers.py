"""Claims, leases, fencing tokens, queues."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from martlet_core.errors import InvalidArgument, LeaseLost
from martlet_core.jobs import Claim, JobState, JobStore, QueueLoad
from martlet_core.testing.job_store_suite.base import (
    LONG_LEASE,
    SHORT_LEASE,
    PassTime,
    StoreCases,
    claim,
    create,
    new_job,
)

_RACERS = 32


class WorkerCases(StoreCases):
    """Claims, leases, fencing tokens, queues."""

    def _race(self, store: JobStore, claim_one: str, argument: str) -> list[Claim]:
        barrier = threading.Barrier(_RACERS)

        def racer(number: int) -> Claim | None:
            barrier.wait()
            return getattr(store, claim_one)(argument, f"worker-{number}", LONG_LEASE)

        with ThreadPoolExecutor(_RACERS) as pool:
            return [claimed for claimed in pool.map(racer, range(_RACERS)) if claimed]

    def test_racing_claims_of_one_job_have_one_winner(self, store: JobStore) -> None:
        job = create(store)
        winners = self._race(store, "claim", job.id)
        assert len(winners) == 1
        assert store.get(job.id) == winners[0].job

    def test_racing_claims_of_a_queue_share_it_out(self, store: JobStore) -> None:
        ids = [create(store).id for _ in range(_RACERS - 2)]
        winners = self._race(store, "claim_next", "trainer")
        assert sorted(winner.job.id for winner in winners) == sorted(ids)
        assert all(store.get(winner.job.id).lease_owner == winner.job.lease_owner for winner in winners)

    # Fencing

    def test_stale_token_is_refused_everywhere(self, store: JobStore, pass_time: PassTime) -> None:
        job = create(store)
        stale = claim(store, job, lease_seconds=SHORT_LEASE).token
        pass_time(SHORT_LEASE * 2)
        store.reap("trainer")
        current = claim(store, job, owner="worker-2")
        assert current.token == stale + 1
        self._check_refused(store, job.id, stale)
        assert store.get(job.id) == current.job

    def test_token_is_refused_once_the_lease_was_reaped(self, store: JobStore, pass_time: PassTime) -> None:
        job = create(store)
        token = claim(store, job, lease_seconds=SHORT_LEASE).token
        pass_time(SHORT_LEASE * 2)
        reaped = store.reap("trainer")[0]
        self._check_refused(store, job.id, token)
        assert store.get(job.id) == reaped

    def test_token_from_the_future_is_refused(self, store: JobStore) -> None:
        job = claim(store, create(store)).job
        self._check_refused(store, job.id, job.attempt + 1)

    def _check_refused(self, store: JobStore, job_id: str, token: int) -> None:
        with pytest.raises(LeaseLost):
            store.heartbeat(job_id, token, LONG_LEASE)
        with pytest.raises(LeaseLost):
            store.update(job_id, token, progress={"step": 1})
        for state in (JobState.SUCCEEDED, JobState.FAILED, JobState.QUEUED):
            with pytest.raises(LeaseLost):
                store.finish(job_id, token, state)

    def test_repeated_finish_gives_the_same_answer(self, store: JobStore) -> None:
        for state in (JobState.SUCCEEDED, JobState.QUEUED):
            job = create(store)
            token = claim(store, job).token
            first = store.finish(job.id, token, state, result={"a": 1})
            events = store.events(job.id)
            assert store.finish(job.id, token, state, result={"a": 1}) == first
            assert store.events(job.id) == events
            with pytest.raises(LeaseLost):
                store.finish(job.id, token, JobState.FAILED)

    # Leases

    def test_lease_that_is_renewed_does_not_lapse(self, store: JobStore, pass_time: PassTime) -> None:
        job = create(store)
        token = claim(store, job, lease_seconds=SHORT_LEASE).token
        store.heartbeat(job.id, token, LONG_LEASE)
        pass_time(SHORT_LEASE * 2)
        assert store.reap("trainer") == []
        assert store.get(job.id).state is JobState.RUNNING

    def test_lapsed_lease_can_be_renewed_until_it_is_reaped(self, store: JobStore, pass_time: PassTime) -> None:
        job = create(store)
        token = claim(store, job, lease_seconds=SHORT_LEASE).token
        pass_time(SHORT_LEASE * 2)
        store.heartbeat(job.id, token, LONG_LEASE)
        assert store.reap("trainer") == []

    def test_reap_handles_its_stage_only(self, store: JobStore, pass_time: PassTime) -> None:
        other = create(store, stage="quantizer", queue="quantizer-awq")
        claim(store, other, lease_seconds=SHORT_LEASE)
        pass_time(SHORT_LEASE * 2)
        assert store.reap("trainer") == []
        assert [job.id for job in store.reap("quantizer")] == [other.id]

    def test_lost_attempts_run_out(self, store: JobStore, pass_time: PassTime) -> None:
        job = create(store, max_attempts=2)
        claim(store, job, lease_seconds=SHORT_LEASE)
        pass_time(SHORT_LEASE * 2)
        [first] = store.reap("trainer")
        assert (first.state, first.attempt, first.lost_attempts) == (JobState.QUEUED, 1, 1)
        assert claim(store, job, lease_seconds=SHORT_LEASE).token == 2
        pass_time(SHORT_LEASE * 2)
        [failed] = store.reap("trainer")
        assert (failed.state, failed.attempt, failed.lost_attempts) == (JobState.FAILED, 2, 2)
        assert failed.error
        assert failed.error["reason"] == "ATTEMPTS_EXHAUSTED"
        assert failed.error["metadata"] == {"lost_attempts": "2"}
        assert "2 attempts" in failed.error["message"]
        assert store.events(job.id)[-1].data["reason"] == "ATTEMPTS_EXHAUSTED"
        assert store.claim(job.id, "w", LONG_LEASE) is None

    def test_attempts_given_back_with_an_error_run_out(self, store: JobStore) -> None:
        job = create(store, max_attempts=2)
        error = {"code": "INTERNAL", "message": "killed by signal 9", "reason": "KILLED"}
        states = []
        for _ in range(2):
            states.append(store.finish(job.id, claim(store, job).token, JobState.QUEUED, error=error).state)
        assert states == [JobState.QUEUED, JobState.FAILED]
        assert store.get(job.id).error == error
        assert "killed by signal 9" in store.events(job.id)[-1].message

    def test_attempts_given_back_or_paused_without_an_error_cost_nothing(self, store: JobStore) -> None:
        job = create(store, max_attempts=1)
        for attempt in range(1, 4):
            assert claim(store, job).token == attempt
            assert store.finish(job.id, attempt, JobState.QUEUED).state is JobState.QUEUED
        store.request_pause(job.id)
        store.request_resume(job.id)
        assert claim(store, job).job.lost_attempts == 0

    @pytest.mark.parametrize("lease_seconds", [0.0, -1.0])
    def test_lease_must_be_positive(self, store: JobStore, lease_seconds: float) -> None:
        job = create(store)
        for call in (
            lambda: store.claim(job.id, "w", lease_seconds),
            lambda: store.claim_next("trainer", "w", lease_seconds),
            lambda: store.heartbeat(job.id, 1, lease_seconds),
            lambda: store.acquire_lease("leader", "w", lease_seconds),
        ):
            with pytest.raises(InvalidArgument, match="lease_seconds"):
                call()

    # Progress and results

    def test_update_replaces_progress_and_merges_results(self, store: JobStore) -> None:
        job = create(store)
        token = claim(store, job).token
        store.update(job.id, token, progress={"step": 1, "metrics": {"loss": 2.5}}, result={"a": [], "b": {"c": {}}})
        checkpoints = [{"artifact_id": "x", "step": 1, "metrics": {"loss": 1e-12}, "is_best": True}]
        updated = store.update(
            job.id, token, progress={"step": 2}, result={"b": None, "d": 2**60}, checkpoints=checkpoints
        )
        assert updated == store.get(job.id)
        assert updated.progress == {"step": 2}
        assert updated.result == {"a": [], "b": None, "d": 2**60}
        assert updated.checkpoints == checkpoints
        finished = store.finish(job.id, token, JobState.SUCCEEDED, result={"e": 1})
        assert finished.result == {"a": [], "b": None, "d": 2**60, "e": 1}
        assert finished.progress == {"step": 2}
        assert finished.update_time > updated.update_time

    # Queues

    def test_queue_goes_by_priority_then_age(self, store: JobStore) -> None:
        low = [create(store, priority=0).id for _ in range(2)]
        middle = [create(store).id for _ in range(2)]
        high = [create(store, priority=9).id for _ in range(2)]
        order = high + middle + low
        assert [store.queue_position(job_id) for job_id in order] == [1, 2, 3, 4, 5, 6]
        assert [job.id for job in store.queued("trainer")] == order
        claims = [store.claim_next("trainer", "w", LONG_LEASE) for _ in range(7)]
        assert [claimed.job.id for claimed in claims if claimed] == order
        assert claims[-1] is None
        assert store.queue_position(order[0]) == 0
        assert store.queued("trainer") == []

    def test_job_that_comes_back_keeps_its_age(self, store: JobStore, pass_time: PassTime) -> None:
        first, second, third = (create(store) for _ in range(3))
        claim(store, second, lease_seconds=SHORT_LEASE)
        token = claim(store, first).token
        pass_time(SHORT_LEASE * 2)
        store.reap("trainer")
        store.finish(first.id, token, JobState.QUEUED)
        store.request_pause(third.id)
        create(store)
        store.request_resume(third.id)
        assert [job.id for job in store.queued("trainer")][:3] == [first.id, second.id, third.id]

    def test_queues_do_not_mix(self, store: JobStore) -> None:
        create(store)
        awq = create(store, stage="quantizer", queue="quantizer-awq", priority=1)
        gptq = create(store, stage="quantizer", queue="quantizer-gptq", priority=2)
        assert store.queue_position(awq.id) == 1
        assert [job.id for job in store.queued("quantizer")] == [gptq.id, awq.id]
        claimed = store.claim_next("quantizer-awq", "w", LONG_LEASE)
        assert claimed
        assert claimed.job.id == awq.id
        assert store.claim_next("quantizer-awq", "w", LONG_LEASE) is None

    def test_queued_counts_from_the_moment_a_job_was_queued(self, store: JobStore, pass_time: PassTime) -> None:
        waiting, back = create(store), create(store)
        token = claim(store, back).token
        pass_time(0.2)
        store.finish(back.id, token, JobState.QUEUED)
        assert [job.id for job in store.queued("trainer", older_than_seconds=0.15)] == [waiting.id]
        assert len(store.queued("trainer")) == 2

    def test_queued_reads_queues_of_any_length(self, store: JobStore) -> None:
        ids = [create(store, spec={}).id for _ in range(450)]
        assert [job.id for job in store.queued("trainer")] == ids

    def test_cancelled_and_paused_jobs_leave_the_queue(self, store: JobStore) -> None:
        cancelled, paused, waiting = (create(store) for _ in range(3))
        store.request_cancel(cancelled.id)
        store.request_pause(paused.id)
        assert store.queue_position(waiting.id) == 1
        assert [job.id for job in store.queued("trainer")] == [waiting.id]

    def test_the_first_of_a_queue_can_be_looked_at(self, store: JobStore) -> None:
        assert store.first_queued("trainer") is None
        create(store)
        high = create(store, priority=9)
        create(store, stage="quantizer", queue="quantizer-awq", priority=9)
        assert store.first_queued("trainer") == high
        assert store.get(high.id).state is JobState.QUEUED
        claimed = store.claim_next("trainer", "w", LONG_LEASE)
        assert claimed
        assert claimed.job.id == high.id

    def test_why_a_job_waits_is_said_once_and_goes_with_the_queue(self, store: JobStore) -> None:
        job = create(store)
        assert job.queued_reason == ""
        assert store.note_queued(job.id, "waiting for a GPU")
        assert not store.note_queued(job.id, "waiting for a GPU")
        assert store.get(job.id).queued_reason == "waiting for a GPU"
        assert store.note_queued(job.id, "")
        assert store.note_queued(job.id, "waiting for another GPU")
        said = [event for event in store.events(job.id) if event.type == "log"]
        assert [event.message for event in said] == ["waiting for a GPU", "waiting for another GPU"]
        assert said[0].data == {"source": "worker"}
        assert claim(store, job).job.queued_reason == ""
        assert not store.note_queued(job.id, "waiting for a GPU"), "it runs"

    def test_a_job_that_is_paused_or_cancelled_waits_for_nothing(self, store: JobStore) -> None:
        paused, cancelled = create(store), create(store)
        for job in (paused, cancelled):
            store.note_queued(job.id, "waiting for a GPU")
        assert store.request_pause(paused.id).queued_reason == ""
        assert store.request_resume(paused.id).queued_reason == ""
        assert store.request_cancel(cancelled.id).queued_reason == ""

    def test_loads_of_queues_count_what_waits_and_what_is_held(self, store: JobStore) -> None:
        assert list(store.queue_loads("quantizer")) == []
        for queue in ("quantizer-awq", "quantizer-awq", "quantizer-awq", "quantizer-gguf"):
            create(store, stage="quantizer", queue=queue)
        create(store)
        pausing, done = (store.claim_next("quantizer-awq", "w", LONG_LEASE) for _ in range(2))
        assert pausing
        assert done
        store.request_pause(pausing.job.id)
        loads = [QueueLoad("quantizer-awq", 1, 2), QueueLoad("quantizer-gguf", 1, 0)]
        assert list(store.queue_loads("quantizer")) == loads
        store.finish(done.job.id, done.token, JobState.SUCCEEDED)
        assert store.queue_loads("quantizer")[0] == QueueLoad("quantizer-awq", 1, 1)

    # Named leases

    def test_named_lease_has_one_owner(self, store: JobStore, pass_time: PassTime) -> None:
        assert store.acquire_lease("leader", "a", LONG_LEASE)
        assert store.acquire_lease("leader", "a", LONG_LEASE)
        assert not store.acquire_lease("leader", "b", LONG_LEASE)
        assert store.acquire_lease("another", "b", LONG_LEASE)
        store.release_lease("leader", "b")
        assert not store.acquire_lease("leader", "b", LONG_LEASE)
        store.release_lease("leader", "a")
        assert store.acquire_lease("leader", "b", SHORT_LEASE)
        pass_time(SHORT_LEASE * 2)
        assert store.acquire_lease("leader", "a", LONG_LEASE)

    def test_ping(self, store: JobStore) -> None:
        store.ping()

    def test_racing_creations_lose_nothing(self, store: JobStore) -> None:
        with ThreadPoolExecutor(_RACERS) as pool:
            jobs = list(pool.map(lambda _: store.create(new_job())[0], range(_RACERS * 4)))
        by_age = [job.id for job in sorted(jobs, key=lambda job: (job.create_time, job.id))]
        assert [job.id for job in store.queued("trainer")] == by_age
