"""Creating, listing, restoring."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from martlet_core.errors import AlreadyExists, InvalidArgument, NotFound
from martlet_core.jobs import JobState, JobStore
from martlet_core.testing.job_store_suite.base import LONG_LEASE, PassTime, StoreCases, claim, create, job_in, new_job


class CreatingCases(StoreCases):
    """Creating, listing, restoring."""

    def test_created_job_is_read_back_as_it_was_given(self, store: JobStore) -> None:
        spec = {
            "a": [],
            "b": {},
            "c": [1, 2.5, 1e-7, 12345678901234567890, None, True],
            "d": "größe\n☃",
            "e": {"f": [{}]},
        }
        given = new_job(
            spec=spec,
            labels={"team": "a b", "x.y": ""},
            display_name="Größe",
            priority=7,
            max_attempts=3,
            request_id="r-1",
        )
        job, created = store.create(given)
        assert created
        assert job == store.get(given.id)
        assert job == replace(given, create_time=job.create_time, update_time=job.update_time, checkpoints=[])
        assert job.create_time > 0
        assert job.update_time == job.create_time

    def test_create_may_leave_the_job_validating(self, store: JobStore) -> None:
        job = create(store, state=JobState.VALIDATING)
        assert job.state is JobState.VALIDATING
        assert store.claim_next("trainer", "w", LONG_LEASE) is None
        assert store.enqueue(job.id).state is JobState.QUEUED
        assert store.enqueue(job.id).state is JobState.QUEUED
        assert store.claim_next("trainer", "w", LONG_LEASE)

    def test_unknown_job_is_not_found(self, store: JobStore) -> None:
        calls = [
            lambda: store.get("nope"),
            lambda: store.enqueue("nope"),
            lambda: store.claim("nope", "w", LONG_LEASE),
            lambda: store.heartbeat("nope", 1, LONG_LEASE),
            lambda: store.update("nope", 1, progress={}),
            lambda: store.finish("nope", 1, JobState.SUCCEEDED),
            lambda: store.request_cancel("nope"),
            lambda: store.request_pause("nope"),
            lambda: store.request_resume("nope"),
            lambda: store.queue_position("nope"),
            lambda: store.note_queued("nope", "why"),
            lambda: store.events("nope"),
            lambda: store.wait_events("nope", after="", timeout_seconds=0),
            lambda: store.expire_events("nope", 1),
        ]
        for call in calls:
            with pytest.raises(NotFound, match="nope"):
                call()

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("id", "Not An Id"),
            ("stage", ""),
            ("stage", "a:b"),
            ("kind", "*"),
            ("tenant", ""),
            ("queue", ""),
            ("request_id", "with space"),
            ("priority", 10),
            ("priority", -1),
            ("max_attempts", 0),
            ("state", JobState.RUNNING),
            ("spec", {"when": object()}),
        ],
    )
    def test_unsound_job_is_refused_by_field(self, store: JobStore, field: str, value: Any) -> None:
        with pytest.raises(InvalidArgument) as caught:
            store.create(new_job(**{field: value}))
        assert [violation.field for violation in caught.value.violations] == [field]
        assert store.list().jobs == []

    # Request ids

    def test_same_request_id_and_spec_give_the_same_job(self, store: JobStore) -> None:
        first = create(store, request_id="r-1", spec={"a": 1, "b": {"x": 1, "y": 2}})
        claimed = claim(store, first)
        again, created = store.create(new_job(request_id="r-1", spec={"b": {"y": 2, "x": 1}, "a": 1}))
        assert not created
        assert again == claimed.job
        assert len(store.list().jobs) == 1

    @pytest.mark.parametrize("changes", [{"spec": {"a": 2}}, {"kind": "merge"}])
    def test_same_request_id_with_another_request_already_exists(
        self, store: JobStore, changes: dict[str, Any]
    ) -> None:
        first = create(store, request_id="r-1")
        with pytest.raises(AlreadyExists) as caught:
            store.create(new_job(request_id="r-1", **changes))
        assert caught.value.metadata == {"request_id": "r-1", "job_id": first.id}
        assert len(store.list().jobs) == 1

    @pytest.mark.parametrize("changes", [{"tenant": "other"}, {"stage": "quantizer"}, {"request_id": ""}])
    def test_request_ids_count_within_tenant_and_stage(self, store: JobStore, changes: dict[str, Any]) -> None:
        first = create(store, request_id="r-1")
        assert create(store, **{"request_id": "r-1", **changes}).id != first.id

    def test_racing_creations_with_one_request_id_make_one_job(self, store: JobStore) -> None:
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: store.create(new_job(request_id="r-1")), range(16)))
        assert sum(created for _, created in answers) == 1
        assert len({job.id for job, _ in answers}) == 1

    def test_job_id_is_taken_once(self, store: JobStore) -> None:
        job = create(store)
        with pytest.raises(AlreadyExists, match=job.id):
            store.create(new_job(id=job.id))

    # Listing

    def test_list_is_newest_first_and_paged(self, store: JobStore) -> None:
        ids = [create(store).id for _ in range(5)]
        newest_first = ids[::-1]
        first = store.list(page_size=2)
        assert [job.id for job in first.jobs] == newest_first[:2]
        second = store.list(page_size=2, page_token=first.next_page_token)
        assert [job.id for job in second.jobs] == newest_first[2:4]
        third = store.list(page_size=2, page_token=second.next_page_token)
        assert [job.id for job in third.jobs] == newest_first[4:]
        assert third.next_page_token == ""
        assert store.list(page_size=5).next_page_token == ""

    def test_page_token_may_be_the_id_of_a_job_seen(self, store: JobStore) -> None:
        ids = [create(store).id for _ in range(3)]
        assert [job.id for job in store.list(page_token=ids[1]).jobs] == [ids[0]]

    def test_jobs_created_between_pages_do_not_shift_them(self, store: JobStore) -> None:
        ids = [create(store).id for _ in range(4)]
        page = store.list(page_size=2)
        create(store)
        rest = store.list(page_size=2, page_token=page.next_page_token)
        assert [job.id for job in rest.jobs] == ids[:2][::-1]

    def test_list_chooses_by_stage_kind_and_tenant(self, store: JobStore) -> None:
        chosen = create(store, stage="trainer", kind="merge", tenant="a:b")
        create(store, stage="trainer", kind="merge", tenant="*")
        create(store, stage="trainer", kind="training", tenant="a:b")
        create(store, stage="quantizer", kind="merge", tenant="a:b")
        assert [j.id for j in store.list(stage="trainer", kind="merge", tenant="a:b").jobs] == [chosen.id]
        assert len(store.list().jobs) == 4
        assert len(store.list(tenant="a:b").jobs) == 3
        assert len(store.list(tenant="*").jobs) == 1
        assert len(store.list(stage="trainer").jobs) == 3
        assert len(store.list(kind="merge").jobs) == 3
        assert len(store.list(stage="quantizer", kind="merge").jobs) == 1
        assert store.list(tenant="nobody").jobs == []

    def test_page_token_of_another_tenants_job_is_refused(self, store: JobStore) -> None:
        foreign = create(store, tenant="other")
        create(store)
        for token in (foreign.id, "nonsense"):
            with pytest.raises(InvalidArgument) as caught:
                store.list(tenant="acme", page_token=token)
            assert caught.value.violations[0].field == "page_token"

    def test_list_filters_by_state_and_labels_over_pages(self, store: JobStore) -> None:
        jobs = [create(store, labels={"team": "red" if i % 3 else "blue", "n": str(i)}) for i in range(12)]
        for job in jobs[::2]:
            store.request_cancel(job.id)
        wanted = [j.id for i, j in enumerate(jobs) if i % 2 == 0 and i % 3][::-1]
        seen, token = [], ""
        while True:
            page = store.list(states=[JobState.CANCELLED], labels={"team": "red"}, page_size=2, page_token=token)
            seen += [job.id for job in page.jobs]
            token = page.next_page_token
            if not token:
                break
            assert len(page.jobs) == 2
        assert seen == wanted
        assert store.list(labels={"team": "red", "n": "0"}).jobs == []
        assert store.list(labels={"nobody": ""}).jobs == []
        assert len(store.list(states=[JobState.CANCELLED, JobState.QUEUED]).jobs) == 12

    @pytest.mark.parametrize("page_size", [0, -1, 1001])
    def test_page_size_has_bounds(self, store: JobStore, page_size: int) -> None:
        with pytest.raises(InvalidArgument, match="page_size"):
            store.list(page_size=page_size)

    # Restoring

    def test_restore_puts_a_job_back_as_it_was(self, store: JobStore) -> None:
        done = new_job(
            state=JobState.FAILED, attempt=3, lost_attempts=1, create_time=1000.25, start_time=1001.0, end_time=1002.5,
            update_time=1002.5, progress={"step": 7}, result={"model": {"name": "x"}}, error={"code": "INTERNAL"},
            checkpoints=[{"step": 5}], labels={"a": "b"}, request_id="r-1",
        )  # fmt: skip
        assert store.restore(done)
        assert store.get(done.id) == done
        assert not store.restore(replace(done, state=JobState.SUCCEEDED))
        assert store.get(done.id) == done
        assert [job.id for job in store.list(tenant="acme").jobs] == [done.id]
        assert store.create(new_job(request_id="r-1")) == (done, False)

    def test_restored_queued_job_is_claimed_in_its_old_place(self, store: JobStore) -> None:
        create(store)
        old = new_job(create_time=1000.0, attempt=2)
        assert store.restore(old)
        assert store.queue_position(old.id) == 1
        claimed = store.claim_next("trainer", "w", LONG_LEASE)
        assert claimed
        assert (claimed.job.id, claimed.token) == (old.id, 3)

    def test_restored_paused_job_waits_until_it_is_resumed(self, store: JobStore) -> None:
        create(store)
        paused = new_job(state=JobState.PAUSED, create_time=1000.0, attempt=2, checkpoints=[{"step": 5}])
        assert store.restore(paused)
        assert store.get(paused.id) == paused
        assert store.claim(paused.id, "w", LONG_LEASE) is None
        assert paused.id not in [job.id for job in store.queued("trainer")]
        assert store.reap("trainer") == []
        assert store.request_resume(paused.id).state is JobState.QUEUED
        assert store.queue_position(paused.id) == 1
        claimed = store.claim_next("trainer", "w", LONG_LEASE)
        assert claimed
        assert (claimed.job.id, claimed.token, claimed.job.checkpoints) == (paused.id, 3, [{"step": 5}])

    def test_restored_paused_job_can_be_cancelled(self, store: JobStore) -> None:
        paused = new_job(state=JobState.PAUSED, create_time=1000.0)
        assert store.restore(paused)
        assert store.request_cancel(paused.id).state is JobState.CANCELLED
        assert store.events(paused.id)[-1].data["reason"] == "CANCEL_REQUESTED"

    def test_restored_running_job_is_reaped(self, store: JobStore, pass_time: PassTime) -> None:
        job, _ = job_in(store, JobState.RUNNING)
        orphan = new_job(state=JobState.RUNNING, attempt=1, lease_owner="gone", lease_until=1000.0, create_time=999.0)
        assert store.restore(orphan)
        assert [reaped.id for reaped in store.reap("trainer")] == [orphan.id]
        assert store.get(orphan.id).state is JobState.QUEUED
        assert store.get(job.id).state is JobState.RUNNING
