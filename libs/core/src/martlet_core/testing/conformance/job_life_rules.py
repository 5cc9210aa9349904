"""The rules of a job's life that every kind keeps: cancelling, pausing, events, the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

from martlet.common.v1 import job_pb2

from martlet_core.testing.conformance.checks import check_pages, expect_bad_field, expect_error, require
from martlet_core.testing.conformance.jobs import FINAL_STATES, WAITING_OR_AT_WORK, Jobs, state_name
from martlet_core.testing.conformance.rules import Untried

S = job_pb2
#: What may follow what, as the comments of JobState say.
_NEXT_STATES: dict[int, tuple[int, ...]] = {
    S.JOB_STATE_UNSPECIFIED: (S.JOB_STATE_VALIDATING, S.JOB_STATE_QUEUED),
    S.JOB_STATE_VALIDATING: (S.JOB_STATE_QUEUED, S.JOB_STATE_FAILED, S.JOB_STATE_CANCELLED),
    S.JOB_STATE_QUEUED: (S.JOB_STATE_RUNNING, S.JOB_STATE_PAUSED, S.JOB_STATE_CANCELLED),
    S.JOB_STATE_RUNNING: (
        S.JOB_STATE_PAUSING,
        S.JOB_STATE_CANCELLING,
        S.JOB_STATE_SUCCEEDED,
        S.JOB_STATE_FAILED,
        S.JOB_STATE_QUEUED,
    ),
    S.JOB_STATE_PAUSING: (
        S.JOB_STATE_PAUSED,
        S.JOB_STATE_CANCELLING,
        S.JOB_STATE_FAILED,
        S.JOB_STATE_SUCCEEDED,
        S.JOB_STATE_RUNNING,
    ),
    S.JOB_STATE_PAUSED: (S.JOB_STATE_QUEUED, S.JOB_STATE_CANCELLED),
    S.JOB_STATE_CANCELLING: (S.JOB_STATE_CANCELLED,),
}


async def cancelled_job_comes_to_rest(jobs: Jobs) -> None:
    """Cancel{noun} returns the job CANCELLING or CANCELLED, and it becomes CANCELLED, with an end_time and without a
    result."""
    async with jobs.made() as job:
        asked = await jobs.ask("Cancel", job.name)
        stopping = (S.JOB_STATE_CANCELLING, S.JOB_STATE_CANCELLED)
        require(asked.state in stopping, f"state is {state_name(asked.state)}")
        ended = await jobs.at_rest(job.name)
    require(ended.HasField("end_time"), "end_time is not set")
    require(ended.end_time.ToNanoseconds() >= ended.create_time.ToNanoseconds(), "end_time is before create_time")
    result = getattr(ended.result, jobs.kind.result_field)
    require(not result, f"result.{jobs.kind.result_field} of a cancelled job is {result!r}")


async def final_states_are_final(jobs: Jobs) -> None:
    """Every method that steers a job is FAILED_PRECONDITION for one in a final state, and changes nothing."""
    job = await jobs.cancelled()
    for verb in ("Cancel", "Pause", "Resume"):
        if jobs.kind.offers(verb):
            await expect_error(f"{verb} of a cancelled job", jobs.ask(verb, job.name), "FAILED_PRECONDITION")
    again = await jobs.ask("Get", job.name)
    require(again.state == S.JOB_STATE_CANCELLED, f"the state became {state_name(again.state)}")
    require(again.update_time == job.update_time, "update_time changed")


async def list_filters_by_state(jobs: Jobs) -> None:
    """List{noun}s with states gives jobs in these states only."""
    label = {"conformance-filter": (await jobs.cancelled()).name.replace("/", "-")}
    ended = await jobs.cancelled(labels=label)
    async with jobs.made(labels=label) as other:
        names, _ = await jobs.page(100, "", labels=label, states=[S.JOB_STATE_CANCELLED])
        require(names == [ended.name], f"CANCELLED jobs are {names}, expected {ended.name}, not {other.name}")
        none, _ = await jobs.page(100, "", labels=label, states=[S.JOB_STATE_PAUSED])
        require(none == [], f"PAUSED jobs are {none}, and none was paused")


# Pausing


async def paused_job_waits_until_it_is_resumed(jobs: Jobs) -> None:
    """Pause{noun} brings the job to PAUSED, where pausing again changes nothing; Resume{noun} queues it again; resuming a
    job that isn't paused is FAILED_PRECONDITION."""
    async with jobs.made() as job:
        await jobs.wait_for_state(job.name, *WAITING_OR_AT_WORK)
        early = jobs.ask("Resume", job.name)
        await expect_error("resume of a job that isn't paused", early, "FAILED_PRECONDITION")
        asked = await jobs.ask("Pause", job.name)
        pausing = (S.JOB_STATE_PAUSING, S.JOB_STATE_PAUSED)
        require(asked.state in pausing, f"state after pausing is {state_name(asked.state)}")
        await jobs.wait_for_state(job.name, S.JOB_STATE_PAUSED)
        again = await jobs.ask("Pause", job.name)
        require(again.state == S.JOB_STATE_PAUSED, f"state after pausing again is {state_name(again.state)}")
        resumed = await jobs.ask("Resume", job.name)
        require(resumed.state in WAITING_OR_AT_WORK, f"state after resuming is {state_name(resumed.state)}")
        await jobs.ask("Pause", job.name)
        await jobs.wait_for_state(job.name, S.JOB_STATE_PAUSED)
        asked = await jobs.ask("Cancel", job.name)
        require(asked.state == S.JOB_STATE_CANCELLED, f"a paused job, cancelled, is {state_name(asked.state)}")


# Events


async def watch_tells_the_whole_life(jobs: Jobs) -> None:
    """Watch{noun} begins with the job's creation, goes on while things happen, gives every event a cursor of its own, a
    time and a text, only moves between states as JobState allows, and ends by itself behind the final state."""
    pauses = jobs.kind.offers("Pause")
    async with jobs.made() as job:
        watching = asyncio.ensure_future(jobs.watch(job.name))
        try:
            if pauses:
                await jobs.wait_for_state(job.name, *WAITING_OR_AT_WORK)
                await jobs.ask("Pause", job.name)
                await jobs.wait_for_state(job.name, S.JOB_STATE_PAUSED)
            await jobs.clean_up(job.name)
            await jobs.at_rest(job.name)
            async with asyncio.timeout(jobs.target.timeout_seconds):
                events = await watching
        finally:
            watching.cancel()
    cursors = [event.cursor for event in events]
    require(all(cursors) and len(set(cursors)) == len(cursors), f"cursors are missing or repeated: {cursors}")
    require(all(event.message for event in events), "an event has no message")
    require(all(event.HasField("create_time") for event in events), "an event has no create_time")
    times = [event.create_time.ToNanoseconds() for event in events]
    require(times == sorted(times), "events are not in the order of their times")
    changes = [event.state_change for event in events if event.WhichOneof("detail") == "state_change"]
    _check_changes(changes)
    told = [change.to_state for change in changes]
    require(not pauses or S.JOB_STATE_PAUSED in told, "the pause was not told")
    require(events[-1].state_change.to_state == S.JOB_STATE_CANCELLED, "the last event is not the final state")


async def watch_goes_on_behind_a_cursor(jobs: Jobs) -> None:
    """Watch{noun} with after_cursor gives exactly what came behind that event; behind the last event of a job that ended it
    gives nothing and ends."""
    job = await jobs.with_events()
    events = await jobs.watch(job.name)
    require(len(events) >= 2, f"only {len(events)} events")
    for index, event in enumerate(events):
        rest = await jobs.watch(job.name, event.cursor)
        require(rest == events[index + 1 :], f"behind event {index} of {len(events)} came {len(rest)}")


async def made_up_cursors_are_refused(jobs: Jobs) -> None:
    """A cursor that no event has is INVALID_ARGUMENT."""
    job = await jobs.cancelled()
    await expect_error("a made-up cursor", jobs.watch(job.name, "no cursor of yours"), "INVALID_ARGUMENT")


async def watchers_hear_the_same(jobs: Jobs) -> None:
    """Several watchers of a job hear the same events, and one that goes away takes nothing from the others."""
    async with jobs.made() as job:
        leaving = jobs.call("Watch", name=job.name)
        watchers = [asyncio.ensure_future(jobs.watch(job.name)) for _ in range(3)]
        try:
            await leaving.read()
            leaving.cancel()
            await jobs.clean_up(job.name)
            async with asyncio.timeout(jobs.target.timeout_seconds):
                heard = await asyncio.gather(*watchers)
        finally:
            for watcher in watchers:
                watcher.cancel()
    require(heard[0] == heard[1] == heard[2], f"they heard {[len(events) for events in heard]} events")


async def past_events_are_listed(jobs: Jobs) -> None:
    """List{noun}Events gives in pages, oldest first, what watching gives."""
    job = await jobs.with_events()
    events = await jobs.watch(job.name)
    page = partial(jobs.event_page, job.name)
    cursors, _ = await page(1000, "")
    require(cursors == [event.cursor for event in events], f"lists {len(cursors)} events, watching gave {len(events)}")
    require(len(events) >= 4, f"only {len(events)} events")
    behind, _ = await page(1000, events[1].cursor)
    require(behind == cursors[2:], "a cursor is no page_token")
    await check_pages(f"List{jobs.kind.noun}Events", page)
    await check_pages(f"List{jobs.kind.noun}Events", page, page_size=3)
    await expect_bad_field("page_size 1001", page(1001, ""), "page_size")


async def newest_events_are_listed_first_when_asked_for(jobs: Jobs) -> None:
    """List{noun}Events with newest_first gives in pages what it gives without, the other way round; behind a cursor it
    gives the events before it."""
    job = await jobs.with_events()
    cursors, _ = await jobs.event_page(job.name, 1000, "")
    require(len(cursors) >= 4, f"only {len(cursors)} events")
    page = partial(jobs.event_page, job.name, newest_first=True)
    reversed_cursors, _ = await page(1000, "")
    require(reversed_cursors == cursors[::-1], f"gives {reversed_cursors}, oldest first it gives {cursors}")
    before, _ = await page(1000, cursors[2])
    require(before == cursors[1::-1], f"before the third event it gives {before}, expected {cursors[1::-1]}")
    await check_pages(f"List{jobs.kind.noun}Events, newest first", page)
    await check_pages(f"List{jobs.kind.noun}Events, newest first", page, page_size=3)


# The end


async def job_succeeds(jobs: Jobs) -> None:
    """{success}"""
    seconds = jobs.target.run_seconds
    if not seconds:
        raise Untried("give a small job time to end: --run-seconds")
    patient = Jobs(jobs.kind, replace(jobs.target, timeout_seconds=seconds))
    async with jobs.made(**jobs.kind.short) as job:
        events = await patient.watch(job.name)
        ended = await jobs.wait_for_state(job.name, *FINAL_STATES)
    require(ended.state == S.JOB_STATE_SUCCEEDED, f"state is {state_name(ended.state)}: {ended.error.message}")
    require(ended.attempt >= 1 and ended.HasField("start_time"), "attempt or start_time is not set")
    jobs.kind.check_success(jobs.target, ended, events)


def _check_changes(changes: Sequence[job_pb2.StateChange]) -> None:
    """RuleBroken unless the changes begin with the creation and each is a move, from where the one before led, that
    JobState allows."""
    require(changes, "no state change was told")
    require(changes[0].from_state == S.JOB_STATE_UNSPECIFIED, "the first change is not the creation")
    for change in changes:
        allowed = _NEXT_STATES.get(change.from_state, ())
        names = f"{state_name(change.from_state)} -> {state_name(change.to_state)}"
        require(change.to_state in allowed, f"{names} is no move that JobState allows")
    for before, after in pairwise(changes):
        moves = f"from {state_name(before.to_state)} to {state_name(after.from_state)}"
        require(before.to_state == after.from_state, f"{moves} untold")


LIFE_TRIALS = (
    cancelled_job_comes_to_rest,
    final_states_are_final,
    list_filters_by_state,
    watch_tells_the_whole_life,
    watch_goes_on_behind_a_cursor,
    made_up_cursors_are_refused,
    watchers_hear_the_same,
)
PAUSE_TRIALS = (paused_job_waits_until_it_is_resumed,)
EVENT_TRIALS = (past_events_are_listed, newest_events_are_listed_first_when_asked_for)
