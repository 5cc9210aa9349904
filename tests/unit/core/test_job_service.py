"""What every stage does with jobs for its callers, on in-memory stores."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.errors import AlreadyExists, FailedPrecondition, Internal, InvalidArgument, NotFound, Unavailable
from martlet_core.job_archive import archive_job, job_from_json, job_to_json
from martlet_core.job_service import JobService, NewJob
from martlet_core.jobs import Job, JobEvent, JobState
from martlet_core.models import ObjectModelRegistry
from martlet_core.stores import Stores
from martlet_core.testing.bell import MemoryBell
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore

KIND = "counting"


class FlakyObjects(MemoryObjectStore):
    """An object store that refuses writes while ``down``."""

    down = False

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        if self.down:
            raise Unavailable("the object store is away")
        super().put(key, data, content_type=content_type)


class CountingJobs(MemoryJobStore):
    """Counts reads of events."""

    reads = 0

    def events(self, *args: Any, **kwargs: Any) -> Any:
        self.reads += 1
        return super().events(*args, **kwargs)

    def with_news(self, *args: Any) -> Any:
        self.reads += 1
        return super().with_news(*args)


class Kit:
    """A job service and what it stands on."""

    def __init__(self, tmp_path: Path) -> None:
        self.jobs = CountingJobs()
        self.objects = FlakyObjects()
        artifacts = ContentAddressedStore(self.objects, tmp_path / "cache")
        self.bell = MemoryBell()
        stores = Stores(self.jobs, self.objects, artifacts, ObjectModelRegistry(self.objects))
        self.service = JobService("toy", stores, self.bell)

    def new(self, **fields: Any) -> NewJob:
        return NewJob(**{"kind": KIND, "queue": "toy-queue", "spec": {"steps": 3}, **fields})

    async def create(self, **fields: Any) -> Job:
        return await self.service.create("acme", self.new(**fields))

    def say(self, job_id: str, text: str) -> None:
        self.jobs.append_event(job_id, JobEvent("log", text))


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


async def test_create_stores_the_spec_before_it_queues_and_rings(kit: Kit) -> None:
    job = await kit.create(display_name="mine", labels={"team": "a"}, priority=7, max_attempts=2)
    assert job.state is JobState.QUEUED
    assert (job.display_name, job.labels, job.priority, job.max_attempts) == ("mine", {"team": "a"}, 7, 2)
    assert kit.bell.rings == [("toy-queue", job.id)]
    stored = job_from_json(kit.objects.get(f"jobs/{job.id}/spec.json"))
    assert (stored.spec, stored.tenant, stored.state) == ({"steps": 3}, "acme", JobState.VALIDATING)


async def test_same_request_id_gives_the_same_job_and_rings_once(kit: Kit) -> None:
    first = await kit.create(request_id="r1")
    again = await kit.create(request_id="r1")
    assert again.id == first.id
    assert len(kit.bell.rings) == 1


async def test_same_request_id_of_another_tenant_gives_another_job(kit: Kit) -> None:
    first = await kit.create(request_id="r1")
    other = await kit.service.create("evil", kit.new(request_id="r1"))
    assert other.id != first.id


async def test_same_request_id_for_another_spec_is_refused(kit: Kit) -> None:
    await kit.create(request_id="r1")
    with pytest.raises(AlreadyExists):
        await kit.create(request_id="r1", spec={"steps": 4})


async def test_creation_cut_short_is_taken_up_by_the_same_request(kit: Kit) -> None:
    kit.objects.down = True
    with pytest.raises(Unavailable):
        await kit.create(request_id="r1")
    kit.objects.down = False
    job = await kit.create(request_id="r1")
    assert job.state is JobState.QUEUED
    assert kit.objects.size(f"jobs/{job.id}/spec.json")
    assert kit.bell.rings == [("toy-queue", job.id)]
    assert len(kit.jobs.list(stage="toy").jobs) == 1


async def test_creation_cut_short_without_a_request_id_leaves_no_job_to_run(kit: Kit) -> None:
    kit.objects.down = True
    with pytest.raises(Unavailable):
        await kit.create()
    (job,) = kit.jobs.list(stage="toy").jobs
    assert job.state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"request_id": "with space"}, "request_id"),
        ({"display_name": "x" * 129}, "display_name"),
        ({"labels": {str(n): "" for n in range(17)}}, "labels"),
        ({"labels": {"k" * 65: ""}}, f"labels['{'k' * 65}']"),
        ({"labels": {"": "v"}}, "labels['']"),
        ({"labels": {"k": "v" * 513}}, "labels['k']"),
    ],
)
async def test_malformed_fields_are_named(kit: Kit, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await kit.create(**fields)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert not kit.jobs.list(stage="toy").jobs


@pytest.mark.parametrize("action", ["get", "cancel", "pause", "resume", "events", "checkpoints"])
@pytest.mark.parametrize("whose", ["other tenant", "other kind", "nobody"])
async def test_jobs_of_others_are_not_found(kit: Kit, action: str, whose: str) -> None:
    job = await kit.create()
    tenant, kind, job_id = {
        "other tenant": ("evil", KIND, job.id),
        "other kind": ("acme", "juggling", job.id),
        "nobody": ("acme", KIND, "00000000000000000000"),
    }[whose]
    with pytest.raises(NotFound):
        await getattr(kit.service, action)(tenant, job_id, kind=kind)
    assert kit.jobs.get(job.id).state is JobState.QUEUED


async def test_watch_of_anothers_job_is_not_found(kit: Kit) -> None:
    job = await kit.create()
    with pytest.raises(NotFound):
        await anext(kit.service.watch("evil", job.id, kind=KIND))


async def test_list_shows_own_jobs_of_the_kind_newest_first_in_pages(kit: Kit) -> None:
    ids = [(await kit.create()).id for _ in range(3)]
    await kit.service.create("evil", kit.new())
    await kit.create(kind="juggling")
    page = await kit.service.list("acme", kind=KIND, page_size=2)
    rest = await kit.service.list("acme", kind=KIND, page_size=2, page_token=page.next_page_token)
    assert [job.id for job in [*page.jobs, *rest.jobs]] == ids[::-1]
    assert rest.next_page_token == ""


async def test_page_size_out_of_range(kit: Kit) -> None:
    with pytest.raises(InvalidArgument, match="page_size"):
        await kit.service.list("acme", kind=KIND, page_size=1001)


async def test_cancel_pause_and_resume_of_a_queued_job(kit: Kit) -> None:
    job = await kit.create()
    assert (await kit.service.pause("acme", job.id, kind=KIND)).state is JobState.PAUSED
    resumed = await kit.service.resume("acme", job.id, kind=KIND)
    assert resumed.state is JobState.QUEUED
    assert kit.bell.rings == [("toy-queue", job.id)] * 2
    assert await kit.service.queue_position(resumed) == 1
    cancelled = await kit.service.cancel("acme", job.id, kind=KIND)
    assert cancelled.state is JobState.CANCELLED
    assert await kit.service.queue_position(cancelled) == 0
    with pytest.raises(FailedPrecondition):
        await kit.service.cancel("acme", job.id, kind=KIND)


async def test_what_is_asked_of_a_job_is_noted_in_the_object_store(kit: Kit) -> None:
    job = await kit.create()

    def wishes() -> list[str]:
        return [key.removeprefix(f"wishes/toy/{job.id}.") for key in kit.objects.list("wishes/")]

    await kit.service.pause("acme", job.id, kind=KIND)
    assert wishes() == ["pause"]
    await kit.service.resume("acme", job.id, kind=KIND)
    assert wishes() == []
    await kit.service.pause("acme", job.id, kind=KIND)
    await kit.service.cancel("acme", job.id, kind=KIND)
    assert wishes() == ["cancel", "pause"]
    with pytest.raises(FailedPrecondition):
        await kit.service.resume("acme", job.id, kind=KIND)
    assert wishes() == ["cancel", "pause"]


async def test_object_store_that_is_away_keeps_nobody_from_cancelling(kit: Kit) -> None:
    job = await kit.create()
    kit.objects.down = True
    assert (await kit.service.pause("acme", job.id, kind=KIND)).state is JobState.PAUSED
    assert (await kit.service.cancel("acme", job.id, kind=KIND)).state is JobState.CANCELLED


async def test_events_in_pages_by_cursor(kit: Kit) -> None:
    job = await kit.create()
    for n in range(3):
        kit.say(job.id, f"line {n}")
    page, token = await kit.service.events("acme", job.id, kind=KIND, page_size=3)
    rest, end = await kit.service.events("acme", job.id, kind=KIND, page_size=3, page_token=token)
    assert [event.message for event in [*page, *rest]][-3:] == ["line 0", "line 1", "line 2"]
    assert end == ""


async def test_newest_events_in_pages_by_cursor(kit: Kit) -> None:
    job = await kit.create()
    for n in range(3):
        kit.say(job.id, f"line {n}")
    page, token = await kit.service.events("acme", job.id, kind=KIND, page_size=2, newest_first=True)
    rest, end = await kit.service.events("acme", job.id, kind=KIND, page_token=token, newest_first=True)
    assert [event.message for event in page] == ["line 2", "line 1"]
    assert [event.message for event in rest] == ["line 0", "VALIDATING -> QUEUED", "created VALIDATING"]
    assert end == ""


async def test_events_of_an_archived_job_outlive_the_job_store(kit: Kit) -> None:
    job = await kit.create()
    kit.say(job.id, "something")
    final = await kit.service.cancel("acme", job.id, kind=KIND)
    before, _ = await kit.service.events("acme", job.id, kind=KIND)
    archive_job(kit.jobs, kit.objects, final)
    kit.jobs.expire_events(job.id, 0.0)
    assert kit.jobs.events(job.id) == []
    after, _ = await kit.service.events("acme", job.id, kind=KIND)
    assert list(after) == list(before)
    first, token = await kit.service.events("acme", job.id, kind=KIND, page_size=2)
    rest, _ = await kit.service.events("acme", job.id, kind=KIND, page_size=100, page_token=token)
    assert [*first, *rest] == list(before)
    newest: list[JobEvent] = []
    token = ""
    while len(newest) < len(before):
        page, token = await kit.service.events(
            "acme", job.id, kind=KIND, page_size=1, page_token=token, newest_first=True
        )
        newest += page
    assert newest == list(before)[::-1]
    assert await kit.service.events("acme", job.id, kind=KIND, page_token=token, newest_first=True) == ([], "")
    watched = [event async for event in kit.service.watch("acme", job.id, kind=KIND)]
    assert watched == list(before)


async def test_checkpoints_newest_first_in_pages(kit: Kit) -> None:
    job = await kit.create()
    claim = kit.jobs.claim(job.id, "w", 30.0)
    assert claim is not None
    entries = [{"artifact_id": f"a{step}", "step": step} for step in (1, 2, 3)]
    kit.jobs.update(job.id, claim.token, checkpoints=entries)
    page, token = await kit.service.checkpoints("acme", job.id, kind=KIND, page_size=2)
    rest, end = await kit.service.checkpoints("acme", job.id, kind=KIND, page_size=2, page_token=token)
    assert [entry["step"] for entry in [*page, *rest]] == [3, 2, 1]
    assert end == ""
    with pytest.raises(InvalidArgument, match="page_token"):
        await kit.service.checkpoints("acme", job.id, kind=KIND, page_token="gone")


async def collect(events: AsyncIterator[JobEvent], into: list[str]) -> None:
    async for event in events:
        into.append(event.message)


async def until(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("waited in vain")


async def test_watch_gives_past_and_coming_events_and_ends_with_the_final_state(kit: Kit) -> None:
    job = await kit.create()
    kit.say(job.id, "past")
    seen: list[str] = []
    task = asyncio.create_task(collect(kit.service.watch("acme", job.id, kind=KIND), seen))
    await until(lambda: "past" in seen)
    kit.say(job.id, "coming")
    await until(lambda: "coming" in seen)
    assert not task.done()
    kit.jobs.request_cancel(job.id)
    await asyncio.wait_for(task, 10)
    assert seen[0] == "created VALIDATING"
    assert "CANCELLED" in seen[-1]
    assert len(seen) == len(set(seen)), "an event came twice"


async def test_watch_goes_on_from_a_cursor(kit: Kit) -> None:
    job = await kit.create()
    kit.say(job.id, "seen before")
    cursor = kit.jobs.events(job.id)[-1].cursor
    kit.say(job.id, "missed")
    kit.jobs.request_cancel(job.id)
    events = [event async for event in kit.service.watch("acme", job.id, kind=KIND, after=cursor)]
    assert events[0].message == "missed"
    assert len(events) == 2


async def test_watch_behind_the_last_event_of_a_finished_job_ends_at_once(kit: Kit) -> None:
    job = await kit.create()
    kit.jobs.request_cancel(job.id)
    cursor = kit.jobs.events(job.id)[-1].cursor
    assert [event async for event in kit.service.watch("acme", job.id, kind=KIND, after=cursor)] == []


@pytest.mark.parametrize("job_count", [1, 100], ids=["one-job", "many-jobs"])
async def test_hundreds_of_watchers_share_their_reads(kit: Kit, job_count: int) -> None:
    jobs = [await kit.create() for _ in range(job_count)]
    seen: list[list[str]] = [[] for _ in range(300)]
    tasks = [
        asyncio.create_task(collect(kit.service.watch("acme", jobs[n % job_count].id, kind=KIND), lines))
        for n, lines in enumerate(seen)
    ]
    await until(lambda: all(lines for lines in seen))
    await asyncio.sleep(0.3)  # let the last ones settle down to waiting
    reads = kit.jobs.reads
    await asyncio.sleep(1.0)  # the window that is measured
    assert kit.jobs.reads - reads < 30, "idle watchers read on their own"
    for job in jobs:
        kit.say(job.id, "news")
        kit.jobs.request_cancel(job.id)
    await asyncio.wait_for(asyncio.gather(*tasks), 20)
    assert all(lines[-2] == "news" for lines in seen)


async def test_watcher_is_told_when_the_job_store_fails_or_the_job_is_gone(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise Internal("a script is broken")

    job = await kit.create()
    seen: list[str] = []
    watching = asyncio.create_task(collect(kit.service.watch("acme", job.id, kind=KIND), seen))
    await until(lambda: kit.service._feed._topics)
    with monkeypatch.context() as patch:
        patch.setattr(kit.jobs, "with_news", fail)
        kit.say(job.id, "heard all the same")
        await until(lambda: "heard all the same" in seen)
    kit.jobs._records.clear()
    with pytest.raises(NotFound):
        await asyncio.wait_for(watching, 10)


async def test_watcher_that_goes_away_leaves_nothing_behind(kit: Kit) -> None:
    job = await kit.create()
    seen: list[str] = []
    task = asyncio.create_task(collect(kit.service.watch("acme", job.id, kind=KIND), seen))
    await until(lambda: seen)
    await asyncio.sleep(0.2)  # into the wait
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: not kit.service._feed._topics)


async def test_draft_is_not_stored(kit: Kit) -> None:
    draft = kit.service.draft("acme", kit.new())
    assert draft.state is JobState.VALIDATING
    assert not kit.jobs.list(stage="toy").jobs
    assert kit.objects.list("jobs/") == []


def test_stored_job_of_a_newer_version_is_read(kit: Kit) -> None:
    job = kit.service.draft("acme", kit.new())
    data = json.loads(job_to_json(job))
    assert job_from_json(json.dumps({**data, "from_the_future": 1}).encode()) == replace(job, checkpoints=[])
