"""The rules of ``martlet.trainer.v1.MergeService``, which a trainer may leave out: UNIMPLEMENTED skips them."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import merge_job_pb2 as pb
from martlet.trainer.v1 import merge_service_pb2 as service_pb

from martlet_core.testing.conformance.checks import (
    Check,
    RpcFailure,
    Skipped,
    check_health,
    check_pages,
    eventually,
    expect_bad_field,
    expect_error,
    read_all,
    require,
)
from martlet_core.testing.conformance.trainer_life import check_changes
from martlet_core.testing.conformance.trainer_target import FINAL_STATES, MERGE_SERVICE, TrainerTarget

S = job_pb2
UNKNOWN_MERGE = "mergeJobs/nosuchjob00000000000"
_BEGINNING = (S.JOB_STATE_VALIDATING, S.JOB_STATE_QUEUED, S.JOB_STATE_RUNNING)
_REQUEST_FIELDS = ("request_id", "validate_only")
_JOB_FIELDS = ("display_name", "labels")
_BAD_FIELDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("adapter", {"adapter": ""}),
    ("precision", {"precision": "float7"}),
    ("suffix", {"suffix": "no spaces / slashes"}),
    ("max_logprob_difference", {"max_logprob_difference": 0.0}),
    ("request_id", {"request_id": "no spaces"}),
    ("display_name", {"display_name": "x" * 129}),
)


async def merging_is_healthy(target: TrainerTarget) -> None:
    """Where MergeService is offered, the standard health service answers SERVING for it by name."""
    await _require_merging(target)
    await check_health(target, MERGE_SERVICE)


# Creating


async def created_merge_is_complete(target: TrainerTarget) -> None:
    """CreateMergeJob returns the job with name, state and times, and with display name, labels and spec as they were
    given; GetMergeJob returns the same."""
    request = await _request(target, display_name="Größe 7", labels={"team": "birds"}, suffix="conf-1")
    job = await target.merging.CreateMergeJob(request, **target.call_options)
    try:
        kind, _, job_id = job.name.partition("/")
        require(kind == "mergeJobs" and job_id and "/" not in job_id, f"name is {job.name!r}")
        given = request.merge_job
        require(job.display_name == given.display_name, f"display_name is {job.display_name!r}")
        require(dict(job.labels) == dict(given.labels), f"labels are {dict(job.labels)}")
        require(job.spec == given.spec, f"spec is {job.spec}")
        require(job.state in _BEGINNING, f"state is {_state(job)}")
        require(job.HasField("create_time") and job.HasField("update_time"), "create_time or update_time is not set")
        require(not job.HasField("end_time") and not job.HasField("error"), "a new job has an end_time or an error")
        again = await _get(target, job.name)
        for field in ("name", "display_name", "labels", "create_time", "spec"):
            require(getattr(again, field) == getattr(job, field), f"GetMergeJob gives another {field}")
    finally:
        await _cancel_all(target, job.name)


async def merge_request_id_makes_create_idempotent(target: TrainerTarget) -> None:
    """The same request_id again returns the merge made the first time; with another spec it is ALREADY_EXISTS."""
    request = await _request(target, request_id=f"conformance-{uuid.uuid4().hex}")
    first = await target.merging.CreateMergeJob(request, **target.call_options)
    try:
        again = await target.merging.CreateMergeJob(request, **target.call_options)
        require(again.name == first.name, f"made {first.name}, then {again.name}")
        other = await _request(target, request_id=request.request_id, suffix="another")
        call = target.merging.CreateMergeJob(other, **target.call_options)
        await expect_error("the same request_id with another spec", call, "ALREADY_EXISTS")
    finally:
        await _cancel_all(target, first.name)


async def merge_validate_only_creates_nothing(target: TrainerTarget) -> None:
    """With validate_only the merge is returned as it would be and nothing is created; a wrong spec is refused all the
    same."""
    label = {"conformance": uuid.uuid4().hex}
    request = await _request(target, labels=label, validate_only=True)
    job = await target.merging.CreateMergeJob(request, **target.call_options)
    require(job.spec.adapter == request.merge_job.spec.adapter, f"spec.adapter is {job.spec.adapter!r}")
    found, _ = await _page(target, 100, "", labels=label)
    require(not found, f"it created {found}")
    wrong = await _request(target, validate_only=True, precision="float7")
    call = target.merging.CreateMergeJob(wrong, **target.call_options)
    await expect_bad_field("validate_only with a wrong precision", call, "precision")


async def wrong_merge_fields_are_named(target: TrainerTarget) -> None:
    """A field that is missing, malformed or out of the range that the contract gives is INVALID_ARGUMENT, named in
    BadRequest."""
    for field, changes in _BAD_FIELDS:
        call = target.merging.CreateMergeJob(await _request(target, **changes), **target.call_options)
        await expect_bad_field(f"a wrong {field}", call, field)


async def unknown_adapter_is_not_found(target: TrainerTarget) -> None:
    """An adapter that doesn't exist is NOT_FOUND, before anything is created."""
    await _require_merging(target)
    for adapter in ("ft:no-such:adapter:anywhere", "artifacts/nosuchartifact0000"):
        request = service_pb.CreateMergeJobRequest(merge_job=pb.MergeJob(spec=pb.MergeSpec(adapter=adapter)))
        call = target.merging.CreateMergeJob(request, **target.call_options)
        await expect_error(f"the adapter {adapter}", call, "NOT_FOUND")


# Finding


async def unknown_merge_is_not_found(target: TrainerTarget) -> None:
    """Every method is NOT_FOUND for a merge that doesn't exist."""
    await _require_merging(target)
    await _expect_not_found(target, UNKNOWN_MERGE)


async def malformed_merge_names_are_refused(target: TrainerTarget) -> None:
    """A name that isn't ``mergeJobs/{id}`` is INVALID_ARGUMENT, or NOT_FOUND."""
    await _require_merging(target)
    for name in ("", "mergeJobs/", "mergeJobs", "trainingJobs/abc", "mergeJobs/a/b", "../mergeJobs/a"):
        await expect_error(f"the name {name!r}", _get(target, name), "INVALID_ARGUMENT", "NOT_FOUND")


async def merges_of_other_tenants_are_not_found(target: TrainerTarget) -> None:
    """A merge is NOT_FOUND for other tenants, in every method, and not on their lists; so is their adapter."""
    await _require_merging(target)
    if not target.other_tenant:
        raise Skipped("no other_tenant was named")
    job = await _create(target)
    try:
        other = target.as_other_tenant()
        await _expect_not_found(other, job.name)
        listed, _ = await _page(other, 1000, "")
        require(job.name not in listed, "another tenant's list has it")
        call = other.merging.CreateMergeJob(await _request(target), **other.call_options)
        await expect_error("another tenant's adapter", call, "NOT_FOUND")
    finally:
        await _cancel_all(target, job.name)


async def merges_are_listed_newest_first_in_pages(target: TrainerTarget) -> None:
    """ListMergeJobs gives merges only, the newest first, in pages of at most page_size, and filters by labels and
    states."""
    label = {"conformance": uuid.uuid4().hex}
    jobs = [await _create(target, labels={**label, "number": str(number)}) for number in range(3)]
    try:
        newest_first = [job.name for job in reversed(jobs)]
        page = partial(_page, target, labels=label)
        names, token = await page(100, "")
        require(names == newest_first, f"listed {names}, created {newest_first[::-1]}")
        require(token == "", f"the last page has the token {token!r}")
        await check_pages("ListMergeJobs", page)
        one, _ = await page(100, "", labels={**label, "number": "1"})
        require(one == [jobs[1].name], f"filtered by a label of {jobs[1].name}: {one}")
        none, _ = await page(100, "", states=[S.JOB_STATE_PAUSED])
        require(none == [], f"filtered by PAUSED: {none}")
        everything, _ = await _page(target, 1000, "")
        require(all(name.startswith("mergeJobs/") for name in everything), f"listed {everything}")
        for size in (-1, 1001):
            await expect_bad_field(f"page_size {size}", page(size, ""), "page_size")
        await expect_bad_field("a made-up page_token", page(10, "no token of yours"), "page_token")
    finally:
        await _cancel_all(target, *(job.name for job in jobs))


# Life


async def cancelled_merge_comes_to_rest(target: TrainerTarget) -> None:
    """CancelMergeJob ends a merge as CANCELLED, with an end_time and without a result; then it is FAILED_PRECONDITION."""
    job = await _cancelled(target)
    require(job.HasField("end_time"), "end_time is not set")
    require(not job.result.merged_model, f"result.merged_model is {job.result.merged_model!r}")
    await expect_error("cancelling it again", _cancel(target, job.name), "FAILED_PRECONDITION")


async def watch_tells_the_whole_merge(target: TrainerTarget) -> None:
    """WatchMergeJob begins with the merge's creation, gives every event a cursor of its own, a time and a text, only
    moves between states as JobState allows, and ends behind the final state; behind a cursor it gives exactly what came
    after. A cursor that no event has is INVALID_ARGUMENT."""
    job = await _cancelled(target)
    events = await _watch(target, job.name)
    cursors = [event.cursor for event in events]
    require(all(cursors) and len(set(cursors)) == len(cursors), f"cursors are missing or repeated: {cursors}")
    require(all(event.message and event.HasField("create_time") for event in events), "an event has no text or time")
    check_changes([event.state_change for event in events if event.WhichOneof("detail") == "state_change"])
    require(events[-1].state_change.to_state == S.JOB_STATE_CANCELLED, "the last event is not the final state")
    for index, event in enumerate(events):
        rest = await _watch(target, job.name, event.cursor)
        require(rest == events[index + 1 :], f"behind event {index} of {len(events)} came {len(rest)}")
    await expect_error("a made-up cursor", _watch(target, job.name, "no cursor of yours"), "INVALID_ARGUMENT")


async def merge_succeeds(target: TrainerTarget) -> None:
    """A sound merge ends SUCCEEDED with a model to use, its artifact, and how far its answers are from the unmerged
    model's."""
    await _require_merging(target)
    if not target.run_seconds:
        raise Skipped("run_seconds is 0: no worker was promised")
    job = await _create(target)
    try:
        await _watch(replace(target, timeout_seconds=target.run_seconds), job.name)
        ended = await _wait_for_state(target, job.name, *FINAL_STATES)
    finally:
        await _cancel_all(target, job.name)
    require(ended.state == S.JOB_STATE_SUCCEEDED, f"state is {_state(ended)}: {ended.error.message}")
    result = ended.result
    require(result.merged_model, "result.merged_model is empty")
    require(result.model_artifact.startswith("artifacts/"), f"model_artifact is {result.model_artifact!r}")
    require(result.positions > 0, "result.positions is 0")
    require(0 <= result.top1_agreement <= 1, f"top1_agreement is {result.top1_agreement}")
    worst, mean = result.max_logprob_difference, result.mean_logprob_difference
    require(0 <= mean <= worst, f"the mean difference is {mean}, the largest {worst}")


# How it is asked


async def _require_merging(target: TrainerTarget) -> None:
    """Skipped if this trainer leaves MergeService out."""
    try:
        await target.merging.ListMergeJobs(service_pb.ListMergeJobsRequest(page_size=1), **target.call_options)
    except grpc.RpcError as error:
        if RpcFailure.of(error).code == "UNIMPLEMENTED":
            raise Skipped("MergeService is not offered here") from None
        raise


async def _request(target: TrainerTarget, **changes: Any) -> service_pb.CreateMergeJobRequest:
    """A request for a sound merge; ``changes`` replace fields of the request, the job or its spec, by name. Skipped where
    there is nothing to merge."""
    await _require_merging(target)
    if not target.adapter:
        raise Skipped("no adapter was named")
    request_fields = {name: changes.pop(name) for name in _REQUEST_FIELDS if name in changes}
    job_fields = {name: changes.pop(name) for name in _JOB_FIELDS if name in changes}
    spec = pb.MergeSpec(**{"adapter": target.adapter, **changes})
    return service_pb.CreateMergeJobRequest(merge_job=pb.MergeJob(spec=spec, **job_fields), **request_fields)


async def _create(target: TrainerTarget, **changes: Any) -> pb.MergeJob:
    return await target.merging.CreateMergeJob(await _request(target, **changes), **target.call_options)


async def _get(target: TrainerTarget, name: str) -> pb.MergeJob:
    return await target.merging.GetMergeJob(service_pb.GetMergeJobRequest(name=name), **target.call_options)


async def _cancel(target: TrainerTarget, name: str) -> pb.MergeJob:
    return await target.merging.CancelMergeJob(service_pb.CancelMergeJobRequest(name=name), **target.call_options)


async def _watch(target: TrainerTarget, name: str, after: str = "") -> list[job_pb2.JobEvent]:
    request = service_pb.WatchMergeJobRequest(name=name, after_cursor=after)
    return await read_all(target.merging.WatchMergeJob(request, **target.call_options))


async def _page(target: TrainerTarget, size: int, token: str, **filters: Any) -> tuple[Sequence[str], str]:
    request = service_pb.ListMergeJobsRequest(page_size=size, page_token=token, **filters)
    answer = await target.merging.ListMergeJobs(request, **target.call_options)
    return [job.name for job in answer.merge_jobs], answer.next_page_token


async def _wait_for_state(target: TrainerTarget, name: str, *states: int) -> pb.MergeJob:
    async def probe() -> pb.MergeJob | None:
        job = await _get(target, name)
        return job if job.state in states else None

    return await eventually(f"the end of {name}", probe, seconds=target.timeout_seconds)


async def _cancelled(target: TrainerTarget) -> pb.MergeJob:
    """A merge that was created and cancelled, and has come to rest. Skipped if a worker was quicker."""
    job = await _create(target)
    await _cancel_all(target, job.name)
    ended = await _wait_for_state(target, job.name, *FINAL_STATES)
    if ended.state in (S.JOB_STATE_SUCCEEDED, S.JOB_STATE_FAILED):
        raise Skipped("the merge had ended before it could be cancelled")
    return ended


async def _cancel_all(target: TrainerTarget, *names: str) -> None:
    """Cancel the merges that haven't ended."""
    for name in names:
        try:
            await _cancel(target, name)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise


async def _expect_not_found(target: TrainerTarget, name: str) -> None:
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "GetMergeJob": partial(_get, target, name),
        "CancelMergeJob": partial(_cancel, target, name),
        "WatchMergeJob": partial(_watch, target, name),
    }
    for method, call in calls.items():
        await expect_error(f"{method} of {name}", call(), "NOT_FOUND")


def _state(job: pb.MergeJob) -> str:
    return job_pb2.JobState.Name(job.state)


MERGE_CHECKS: tuple[Check, ...] = (
    merging_is_healthy,
    created_merge_is_complete,
    merge_request_id_makes_create_idempotent,
    merge_validate_only_creates_nothing,
    wrong_merge_fields_are_named,
    unknown_adapter_is_not_found,
    unknown_merge_is_not_found,
    malformed_merge_names_are_refused,
    merges_of_other_tenants_are_not_found,
    merges_are_listed_newest_first_in_pages,
    cancelled_merge_comes_to_rest,
    watch_tells_the_whole_merge,
    merge_succeeds,
)
