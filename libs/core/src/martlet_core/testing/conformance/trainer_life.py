"""The rules of ``martlet.trainer.v1.TrainingService`` about a job's life: steering, events, checkpoints, the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import training_job_pb2 as pb
from martlet.trainer.v1 import training_service_pb2 as service_pb

from martlet_core.testing.conformance.checks import (
    Check,
    Skipped,
    check_pages,
    expect_bad_field,
    expect_error,
    require,
)
from martlet_core.testing.conformance.trainer_target import (
    FINAL_STATES,
    TrainerTarget,
    cancel,
    cancel_all,
    cancelled_job,
    create,
    pause,
    resume,
    wait_for_state,
    watch,
)

S = job_pb2
_WAITING_OR_AT_WORK = (S.JOB_STATE_QUEUED, S.JOB_STATE_RUNNING)

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


async def cancelled_job_comes_to_rest(target: TrainerTarget) -> None:
    """CancelTrainingJob returns the job CANCELLING or CANCELLED, and it becomes CANCELLED, with an end_time."""
    job = await create(target)
    asked = await cancel(target, job.name)
    require(asked.state in (S.JOB_STATE_CANCELLING, S.JOB_STATE_CANCELLED), f"state is {_state(asked)}")
    ended = await wait_for_state(target, job.name, S.JOB_STATE_CANCELLED)
    require(ended.HasField("end_time"), "end_time is not set")
    require(ended.end_time.ToNanoseconds() >= ended.create_time.ToNanoseconds(), "end_time is before create_time")
    require(not ended.result.fine_tuned_model, "a cancelled job has a fine_tuned_model")


async def final_states_are_final(target: TrainerTarget) -> None:
    """Cancel, pause and resume of a job in a final state are FAILED_PRECONDITION and change nothing."""
    job = await cancelled_job(target)
    for what, call in (("cancel", cancel), ("pause", pause), ("resume", resume)):
        await expect_error(f"{what} of a cancelled job", call(target, job.name), "FAILED_PRECONDITION")
    again = await wait_for_state(target, job.name, S.JOB_STATE_CANCELLED)
    require(again.update_time == job.update_time, "update_time changed")


async def paused_job_waits_until_it_is_resumed(target: TrainerTarget) -> None:
    """PauseTrainingJob brings the job to PAUSED, where pausing again changes nothing; ResumeTrainingJob queues it
    again; resuming a job that isn't paused is FAILED_PRECONDITION."""
    job = await create(target)
    try:
        await wait_for_state(target, job.name, *_WAITING_OR_AT_WORK)
        await expect_error("resume of a job that isn't paused", resume(target, job.name), "FAILED_PRECONDITION")
        asked = await pause(target, job.name)
        require(asked.state in (S.JOB_STATE_PAUSING, S.JOB_STATE_PAUSED), f"state after pausing is {_state(asked)}")
        await wait_for_state(target, job.name, S.JOB_STATE_PAUSED)
        again = await pause(target, job.name)
        require(again.state == S.JOB_STATE_PAUSED, f"state after pausing again is {_state(again)}")
        resumed = await resume(target, job.name)
        require(resumed.state in _WAITING_OR_AT_WORK, f"state after resuming is {_state(resumed)}")
        await pause(target, job.name)
        await wait_for_state(target, job.name, S.JOB_STATE_PAUSED)
        asked = await cancel(target, job.name)
        require(asked.state == S.JOB_STATE_CANCELLED, f"state after cancelling a paused job is {_state(asked)}")
    finally:
        await cancel_all(target, job.name)


async def list_filters_by_state(target: TrainerTarget) -> None:
    """ListTrainingJobs with states gives jobs in these states only."""
    label = {"conformance-filter": (await cancelled_job(target)).name.replace("/", "-")}
    ended = await cancelled_job(target, labels=label)
    waiting = await create(target, labels=label)
    try:
        request = service_pb.ListTrainingJobsRequest(labels=label, states=[S.JOB_STATE_CANCELLED])
        found = await target.stub.ListTrainingJobs(request, **target.call_options)
        names = [job.name for job in found.training_jobs]
        require(names == [ended.name], f"CANCELLED jobs are {names}, expected {ended.name}, not {waiting.name}")
    finally:
        await cancel_all(target, waiting.name)


# Events


async def watch_tells_the_whole_life(target: TrainerTarget) -> None:
    """WatchTrainingJob begins with the job's creation, goes on while things happen, gives every event a cursor of its
    own, a time and a text, only moves between states as JobState allows, and ends by itself behind the final state."""
    job = await create(target)
    watching = asyncio.ensure_future(watch(target, job.name))
    try:
        await wait_for_state(target, job.name, *_WAITING_OR_AT_WORK)
        await pause(target, job.name)
        await wait_for_state(target, job.name, S.JOB_STATE_PAUSED)
        await cancel(target, job.name)
        async with asyncio.timeout(target.timeout_seconds):
            events = await watching
    finally:
        watching.cancel()
        await cancel_all(target, job.name)
    cursors = [event.cursor for event in events]
    require(all(cursors) and len(set(cursors)) == len(cursors), f"cursors are missing or repeated: {cursors}")
    require(all(event.message for event in events), "an event has no message")
    require(all(event.HasField("create_time") for event in events), "an event has no create_time")
    times = [event.create_time.ToNanoseconds() for event in events]
    require(times == sorted(times), "events are not in the order of their times")
    changes = [event.state_change for event in events if event.WhichOneof("detail") == "state_change"]
    check_changes(changes)
    require(S.JOB_STATE_PAUSED in [change.to_state for change in changes], "the pause was not told")
    require(events[-1].state_change.to_state == S.JOB_STATE_CANCELLED, "the last event is not the final state")


async def watch_goes_on_behind_a_cursor(target: TrainerTarget) -> None:
    """WatchTrainingJob with after_cursor gives exactly what came behind that event; behind the last event of a job that
    ended it gives nothing and ends."""
    job = await _job_with_events(target)
    events = await watch(target, job.name)
    require(len(events) >= 4, f"only {len(events)} events")
    for index, event in enumerate(events):
        rest = await watch(target, job.name, event.cursor)
        require(rest == events[index + 1 :], f"behind event {index} of {len(events)} came {len(rest)}")


async def past_events_are_listed(target: TrainerTarget) -> None:
    """ListTrainingJobEvents gives in pages, oldest first, what watching gives."""
    job = await _job_with_events(target)
    events = await watch(target, job.name)
    page = _event_pages(target, job.name)
    cursors, _ = await page(1000, "")
    require(cursors == [event.cursor for event in events], f"lists {len(cursors)} events, watching gave {len(events)}")
    behind, _ = await page(1000, events[1].cursor)
    require(behind == cursors[2:], "a cursor is no page_token")
    await check_pages("ListTrainingJobEvents", page)
    await check_pages("ListTrainingJobEvents", page, page_size=3)
    await expect_bad_field("page_size 1001", page(1001, ""), "page_size")


async def newest_events_are_listed_first_when_asked_for(target: TrainerTarget) -> None:
    """ListTrainingJobEvents with newest_first gives in pages what it gives without, the other way round; behind a cursor
    it gives the events before it."""
    job = await _job_with_events(target)
    cursors, _ = await _event_pages(target, job.name)(1000, "")
    page = _event_pages(target, job.name, newest_first=True)
    reversed_cursors, _ = await page(1000, "")
    require(reversed_cursors == cursors[::-1], f"gives {reversed_cursors}, oldest first it gives {cursors}")
    before, _ = await page(1000, cursors[2])
    require(before == cursors[1::-1], f"before the third event it gives {before}, expected {cursors[1::-1]}")
    await check_pages("ListTrainingJobEvents, newest first", page)
    await check_pages("ListTrainingJobEvents, newest first", page, page_size=3)


async def made_up_cursors_are_refused(target: TrainerTarget) -> None:
    """A cursor that no event has is INVALID_ARGUMENT."""
    job = await cancelled_job(target)
    await expect_error("a made-up cursor", watch(target, job.name, "no cursor of yours"), "INVALID_ARGUMENT")


async def watchers_hear_the_same(target: TrainerTarget) -> None:
    """Several watchers of a job hear the same events; one that goes away takes nothing from the others."""
    job = await create(target)
    request = service_pb.WatchTrainingJobRequest(name=job.name)
    leaving = target.stub.WatchTrainingJob(request, **target.call_options)
    watchers = [asyncio.ensure_future(watch(target, job.name)) for _ in range(3)]
    try:
        await leaving.read()
        leaving.cancel()
        await cancel(target, job.name)
        async with asyncio.timeout(target.timeout_seconds):
            heard = await asyncio.gather(*watchers)
    finally:
        for watcher in watchers:
            watcher.cancel()
        await cancel_all(target, job.name)
    require(heard[0] == heard[1] == heard[2], f"they heard {[len(events) for events in heard]} events")


async def new_job_has_no_checkpoints(target: TrainerTarget) -> None:
    """ListTrainingCheckpoints of a job that was never run is empty."""
    job = await cancelled_job(target)
    if job.attempt:
        raise Skipped("a worker had begun with the job")
    request = service_pb.ListTrainingCheckpointsRequest(name=job.name)
    answer = await target.stub.ListTrainingCheckpoints(request, **target.call_options)
    require(not answer.checkpoints and not answer.next_page_token, f"it has {len(answer.checkpoints)} checkpoints")


async def training_succeeds(target: TrainerTarget) -> None:
    """A sound training of one step ends SUCCEEDED with a model to use, its artifact, a data report, metrics and, among
    its events, the metrics of the step."""
    if not target.run_seconds:
        raise Skipped("run_seconds is 0: no worker was promised")
    patient = replace(target, timeout_seconds=target.run_seconds)
    job = await create(target, hyperparameters=pb.Hyperparameters(max_steps=1, per_device_batch_size=1))
    try:
        events = await watch(patient, job.name)
        ended = await wait_for_state(target, job.name, *FINAL_STATES)
    finally:
        await cancel_all(target, job.name)
    require(ended.state == S.JOB_STATE_SUCCEEDED, f"state is {_state(ended)}: {ended.error.message}")
    require(ended.result.fine_tuned_model, "result.fine_tuned_model is empty")
    require(ended.result.model_artifact.startswith("artifacts/"), f"model_artifact is {ended.result.model_artifact!r}")
    require(ended.result.training_data.rows_used > 0, "result.training_data.rows_used is 0")
    require(ended.progress.step == 1, f"progress.step is {ended.progress.step}")
    require(ended.attempt >= 1 and ended.HasField("start_time"), "attempt or start_time is not set")
    steps = [event.metrics.step for event in events if event.WhichOneof("detail") == "metrics"]
    require(1 in steps, f"there are metrics of the steps {steps}, not of step 1")


def _event_pages(
    target: TrainerTarget, name: str, *, newest_first: bool = False
) -> Callable[[int, str], Awaitable[tuple[Sequence[str], str]]]:
    """Lists the cursors of a job's events in pages, as ``check_pages`` wants it."""

    async def page(size: int, token: str) -> tuple[Sequence[str], str]:
        request = service_pb.ListTrainingJobEventsRequest(
            name=name, page_size=size, page_token=token, newest_first=newest_first
        )
        answer = await target.stub.ListTrainingJobEvents(request, **target.call_options)
        return [event.cursor for event in answer.events], answer.next_page_token

    return page


async def _job_with_events(target: TrainerTarget) -> pb.TrainingJob:
    """A job that was paused, resumed and cancelled: five events at least."""
    job = await create(target)
    await wait_for_state(target, job.name, *_WAITING_OR_AT_WORK)
    await pause(target, job.name)
    await wait_for_state(target, job.name, S.JOB_STATE_PAUSED)
    await resume(target, job.name)
    await cancel(target, job.name)
    return await wait_for_state(target, job.name, S.JOB_STATE_CANCELLED)


def check_changes(changes: Sequence[job_pb2.StateChange]) -> None:
    """RuleBroken unless the changes begin with the creation and each is a move, from where the one before led, that
    JobState allows."""
    require(changes, "no state change was told")
    require(changes[0].from_state == S.JOB_STATE_UNSPECIFIED, "the first change is not the creation")
    for change in changes:
        allowed = _NEXT_STATES.get(change.from_state, ())
        names = f"{_name(change.from_state)} -> {_name(change.to_state)}"
        require(change.to_state in allowed, f"{names} is no move that JobState allows")
    for before, after in pairwise(changes):
        require(
            before.to_state == after.from_state, f"from {_name(before.to_state)} to {_name(after.from_state)} untold"
        )


def _state(job: pb.TrainingJob) -> str:
    return _name(job.state)


def _name(state: Any) -> str:
    return job_pb2.JobState.Name(state)


LIFE_CHECKS: tuple[Check, ...] = (
    cancelled_job_comes_to_rest,
    final_states_are_final,
    paused_job_waits_until_it_is_resumed,
    list_filters_by_state,
    watch_tells_the_whole_life,
    watch_goes_on_behind_a_cursor,
    past_events_are_listed,
    newest_events_are_listed_first_when_asked_for,
    made_up_cursors_are_refused,
    watchers_hear_the_same,
    new_job_has_no_checkpoints,
    training_succeeds,
)
