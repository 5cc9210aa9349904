"""What a job says: order, cursors, waiting."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from martlet_core.errors import InvalidArgument
from martlet_core.jobs import Job, JobEvent, JobState, JobStore
from martlet_core.testing.job_store_suite.base import SHORT_LEASE, PassTime, StoreCases, claim, create


def _say(store: JobStore, job: Job, count: int) -> list[JobEvent]:
    return [
        store.append_event(
            job.id, JobEvent("metrics", f"step {i}", attempt=1, data={"step": i, "values": {"loss": 1 / (i + 1)}})
        )
        for i in range(count)
    ]


class EventCases(StoreCases):
    """What a job says."""

    def test_life_of_a_job_is_told_in_state_events(self, store: JobStore) -> None:
        job = create(store, state=JobState.VALIDATING)
        store.enqueue(job.id)
        token = claim(store, job).token
        store.request_pause(job.id)
        store.finish(job.id, token, JobState.PAUSED)
        store.request_resume(job.id)
        token = claim(store, job).token
        store.finish(job.id, token, JobState.SUCCEEDED)
        events = store.events(job.id)
        assert [(e.data["from"], e.data["to"], e.data["reason"], e.attempt) for e in events] == [
            ("", "VALIDATING", "", 0),
            ("VALIDATING", "QUEUED", "", 0),
            ("QUEUED", "RUNNING", "", 1),
            ("RUNNING", "PAUSING", "PAUSE_REQUESTED", 1),
            ("PAUSING", "PAUSED", "PAUSE_REQUESTED", 1),
            ("PAUSED", "QUEUED", "RESUME_REQUESTED", 1),
            ("QUEUED", "RUNNING", "", 2),
            ("RUNNING", "SUCCEEDED", "", 2),
        ]
        assert all(event.type == "state" and event.message and event.level == "info" for event in events)
        times = [event.create_time for event in events]
        assert times == sorted(times)
        assert times[0] >= job.create_time

    def test_event_is_read_back_as_it_was_appended(self, store: JobStore) -> None:
        job = create(store)
        given = JobEvent(
            "log", "größe\n☃ \x00 {}", level="warn", attempt=3, data={"source": "stderr", "list": [], "map": {}}
        )
        stored = store.append_event(job.id, given)
        assert stored.cursor
        assert stored.create_time > 0
        assert store.events(job.id)[-1] == stored
        assert (stored.type, stored.message, stored.level, stored.attempt, stored.data) == (
            given.type, given.message, given.level, given.attempt, given.data,
        )  # fmt: skip

    def test_message_that_is_not_unicode_is_still_stored(self, store: JobStore) -> None:
        job = create(store)
        store.append_event(job.id, JobEvent("log", "bad byte \udcff end"))
        assert store.events(job.id)[-1].message.startswith("bad byte")

    def test_cursors_go_forward(self, store: JobStore) -> None:
        job = create(store)
        said = _say(store, job, 7)
        everything = list(store.events(job.id))
        assert everything[1:] == said
        seen, after = [], ""
        while page := store.events(job.id, after=after, limit=3):
            assert len(page) <= 3
            seen += page
            after = page[-1].cursor
            assert len(seen) <= len(everything), "the cursor goes in circles"
        assert seen == everything

    def test_cursors_go_backward(self, store: JobStore) -> None:
        job = create(store)
        _say(store, job, 7)
        everything = list(store.events(job.id))
        seen, before = [], ""
        while page := store.events(job.id, after=before, limit=3, newest_first=True):
            seen += page
            before = page[-1].cursor
            assert len(seen) <= len(everything), "the cursor goes in circles"
        assert seen == everything[::-1]

    def test_newest_events_come_in_pages_without_the_older_ones(self, store: JobStore) -> None:
        job = create(store)
        said = _say(store, job, 5)
        newest = store.events(job.id, limit=2, newest_first=True)
        assert list(newest) == [said[4], said[3]]
        assert list(store.events(job.id, after=newest[-1].cursor, limit=2, newest_first=True)) == [said[2], said[1]]
        [first] = store.events(job.id, limit=1)
        assert list(store.events(job.id, after=first.cursor, newest_first=True)) == []

    def test_places_with_news_are_those_with_an_event_behind_them(self, store: JobStore) -> None:
        quiet, busy, new = create(store), create(store), create(store)
        places = [(job.id, store.events(job.id)[-1].cursor) for job in (quiet, busy)]
        assert list(store.with_news(places)) == []
        assert list(store.with_news([])) == []
        before = places[1]
        [said] = _say(store, busy, 1)
        assert list(store.with_news([*places, (new.id, ""), (busy.id, said.cursor)])) == [before, (new.id, "")]

    def test_job_that_is_gone_is_news(self, store: JobStore) -> None:
        job = create(store)
        [event] = store.events(job.id)
        gone = ("nosuchjob", event.cursor)
        assert list(store.with_news([(job.id, event.cursor), gone])) == [gone]

    def test_news_of_many_jobs(self, store: JobStore) -> None:
        places = []
        for _ in range(450):  # more than one batch
            job = create(store)
            places.append((job.id, store.events(job.id)[-1].cursor))
        for job_id, _ in places[::7]:
            store.request_cancel(job_id)
        assert list(store.with_news(places)) == places[::7]

    def test_events_of_jobs_do_not_mix(self, store: JobStore) -> None:
        first, second = create(store), create(store)
        _say(store, first, 2)
        assert len(store.events(first.id)) == 3
        assert len(store.events(second.id)) == 1

    @pytest.mark.parametrize("cursor", ["x", "1", "1-", "-1", "1-2-3", "(1-1", "+"])
    def test_cursor_that_no_event_has_is_refused(self, store: JobStore, cursor: str) -> None:
        job = create(store)
        with pytest.raises(InvalidArgument, match="cursor"):
            store.events(job.id, after=cursor)
        with pytest.raises(InvalidArgument, match="cursor"):
            store.wait_events(job.id, after=cursor, timeout_seconds=0)
        with pytest.raises(InvalidArgument, match="cursor"):
            store.with_news([(job.id, cursor)])

    def test_waiting_answers_at_once_when_there_is_something(self, store: JobStore) -> None:
        job = create(store)
        [first] = store.events(job.id)
        said = _say(store, job, 2)
        assert store.wait_events(job.id, after="", timeout_seconds=30) == [first, *said]
        assert store.wait_events(job.id, after=first.cursor, timeout_seconds=30) == said

    @pytest.mark.parametrize("timeout_seconds", [0.0, 0.03])
    def test_waiting_ends_with_nothing_on_time_out(self, store: JobStore, timeout_seconds: float) -> None:
        job = create(store)
        last = store.events(job.id)[-1].cursor
        assert store.wait_events(job.id, after=last, timeout_seconds=timeout_seconds) == []

    def test_waiters_hear_everything_once_and_in_order(self, store: JobStore) -> None:
        job = create(store)

        def watch() -> list[JobEvent]:
            heard: list[JobEvent] = []
            while not heard or heard[-1].data.get("to") != "CANCELLED":
                new = store.wait_events(job.id, after=heard[-1].cursor if heard else "", timeout_seconds=30)
                assert new, "nothing came in 30 s"
                heard += new
            return heard

        with ThreadPoolExecutor(4) as pool:
            watchers = [pool.submit(watch) for _ in range(4)]
            _say(store, job, 50)
            store.request_cancel(job.id)
            for watcher in watchers:
                assert watcher.result(60) == list(store.events(job.id))

    def test_expired_events_go_and_the_job_stays(self, store: JobStore, pass_time: PassTime) -> None:
        job = create(store)
        store.expire_events(job.id, 60)
        assert len(store.events(job.id)) == 1
        store.expire_events(job.id, SHORT_LEASE)
        pass_time(SHORT_LEASE * 2)
        assert store.events(job.id) == []
        assert store.get(job.id) == job
