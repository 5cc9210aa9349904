"""The rules of ``martlet.quantizer.v1``."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from martlet.common.v1 import job_pb2
from martlet.quantizer.v1 import quantization_job_pb2 as pb
from martlet.quantizer.v1 import quantization_service_pb2 as service_pb

from martlet_core.testing.conformance.checks import (
    Check,
    Skipped,
    check_health,
    check_pages,
    check_reflection,
    expect_bad_field,
    expect_error,
    require,
)
from martlet_core.testing.conformance.quantizer_target import (
    SERVICE,
    UNKNOWN_JOB,
    QuantizerTarget,
    ask,
    cancel_all,
    cancelled_job,
    create,
    job_request,
    wait_for_state,
    watch,
)
from martlet_core.testing.conformance.trainer_life import check_changes

S = job_pb2
_WAITING_OR_AT_WORK = (S.JOB_STATE_QUEUED, S.JOB_STATE_RUNNING)
_BEGINNING = (S.JOB_STATE_VALIDATING, *_WAITING_OR_AT_WORK)
_FINAL = (S.JOB_STATE_SUCCEEDED, S.JOB_STATE_FAILED, S.JOB_STATE_CANCELLED)
_BAD_FIELDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("model", {"model": ""}),
    ("method", {"method": ""}),
    ("dataset", {"calibration": pb.CalibrationSpec(dataset="not a resource name")}),
    ("max_rows", {"calibration": pb.CalibrationSpec(max_rows=1)}),
    ("sequence_length", {"calibration": pb.CalibrationSpec(sequence_length=1)}),
    ("evaluation_dataset", {"evaluation_dataset": "not a resource name"}),
    ("bits", {"options": pb.QuantizationOptions(bits=5)}),
    ("group_size", {"options": pb.QuantizationOptions(group_size=7)}),
    ("max_perplexity_ratio", {"max_perplexity_ratio": 0.5}),
    ("sample_prompts", {"sample_prompts": ["Hello"] * 17}),
    ("suffix", {"suffix": "no spaces / slashes"}),
    ("seed", {"seed": -1}),
    ("priority", {"resources": pb.QuantizationResources(priority=10)}),
    ("max_attempts", {"resources": pb.QuantizationResources(max_attempts=0)}),
    ("request_id", {"request_id": "no spaces"}),
    ("display_name", {"display_name": "x" * 129}),
)


async def health_is_serving(target: QuantizerTarget) -> None:
    """The standard health service answers SERVING for the server and for the service by name."""
    await check_health(target, SERVICE)


async def reflection_lists_the_service(target: QuantizerTarget) -> None:
    """Where server reflection is on, it lists the service."""
    await check_reflection(target, SERVICE)


async def methods_are_listed(target: QuantizerTarget) -> None:
    """ListQuantizationMethods gives methods with names of their own, bits, a family and a limit above 1, in pages."""

    async def page(size: int, token: str) -> tuple[Sequence[str], str]:
        request = service_pb.ListQuantizationMethodsRequest(page_size=size, page_token=token)
        answer = await target.stub.ListQuantizationMethods(request, **target.call_options)
        for method in answer.methods:
            sound = method.family and method.description and method.bits > 0 and method.max_perplexity_ratio > 1
            require(sound, f"the method is {method}")
        return [method.name for method in answer.methods], answer.next_page_token

    names, _ = await page(1000, "")
    require(target.method in names, f"the methods are {names}")
    require(len(set(names)) == len(names), f"names are not unique: {names}")
    await check_pages("ListQuantizationMethods", page)
    await expect_bad_field("page_size 1001", page(1001, ""), "page_size")


# Creating


async def created_job_is_complete(target: QuantizerTarget) -> None:
    """CreateQuantizationJob returns the job with name, state and times, and with display name, labels and spec as they were
    given; GetQuantizationJob returns the same."""
    request = job_request(target, display_name="Größe 7", labels={"team": "birds"}, suffix="conf-1")
    job = await target.stub.CreateQuantizationJob(request, **target.call_options)
    try:
        kind, _, job_id = job.name.partition("/")
        require(kind == "quantizationJobs" and job_id and "/" not in job_id, f"name is {job.name!r}")
        given = request.quantization_job
        require(job.display_name == given.display_name, f"display_name is {job.display_name!r}")
        require(dict(job.labels) == dict(given.labels), f"labels are {dict(job.labels)}")
        require(job.spec == given.spec, f"spec is {job.spec}")
        require(job.state in _BEGINNING, f"state is {_state(job)}")
        require(job.HasField("create_time") and job.HasField("update_time"), "create_time or update_time is not set")
        require(not job.HasField("end_time") and not job.HasField("error"), "a new job has an end_time or an error")
        again = await ask(target, "Get", job.name)
        for field in ("name", "display_name", "labels", "create_time", "spec"):
            require(getattr(again, field) == getattr(job, field), f"GetQuantizationJob gives another {field}")
    finally:
        await cancel_all(target, job.name)


async def request_id_makes_create_idempotent(target: QuantizerTarget) -> None:
    """The same request_id again returns the job made the first time; with another spec it is ALREADY_EXISTS."""
    request = job_request(target, request_id=f"conformance-{uuid.uuid4().hex}")
    first = await target.stub.CreateQuantizationJob(request, **target.call_options)
    try:
        again = await target.stub.CreateQuantizationJob(request, **target.call_options)
        require(again.name == first.name, f"made {first.name}, then {again.name}")
        other = job_request(target, request_id=request.request_id, seed=12345)
        call = target.stub.CreateQuantizationJob(other, **target.call_options)
        await expect_error("the same request_id with another spec", call, "ALREADY_EXISTS")
    finally:
        await cancel_all(target, first.name)


async def validate_only_creates_nothing(target: QuantizerTarget) -> None:
    """With validate_only the job is returned as it would be and nothing is created; a wrong spec is refused all the
    same."""
    label = uuid.uuid4().hex
    request = job_request(target, labels={"conformance": label}, validate_only=True)
    job = await target.stub.CreateQuantizationJob(request, **target.call_options)
    require(job.spec.model == target.model, f"spec.model is {job.spec.model!r}")
    listing = service_pb.ListQuantizationJobsRequest(labels={"conformance": label})
    found = await target.stub.ListQuantizationJobs(listing, **target.call_options)
    require(not found.quantization_jobs, f"it created {[job.name for job in found.quantization_jobs]}")
    await expect_bad_field("validate_only with a wrong seed", create(target, validate_only=True, seed=-1), "seed")


async def wrong_fields_are_named(target: QuantizerTarget) -> None:
    """A field that is missing, malformed or out of the range that the contract gives is INVALID_ARGUMENT, named in
    BadRequest."""
    for field, changes in _BAD_FIELDS:
        await expect_bad_field(f"a wrong {field}", create(target, **changes), field)


async def unknown_inputs_are_not_found(target: QuantizerTarget) -> None:
    """A model, method or data set that doesn't exist is NOT_FOUND, before anything is created."""
    for field, value in (
        ("model", "no-such-model-anywhere"),
        ("method", "no-such-method"),
        ("evaluation_dataset", "artifacts/nosuchartifact0000"),
    ):
        await expect_error(f"an unknown {field}", create(target, **{field: value}), "NOT_FOUND")


async def adapters_are_refused(target: QuantizerTarget) -> None:
    """An adapter is INVALID_ARGUMENT: it is merged first."""
    if not target.adapter:
        raise Skipped("no adapter was named")
    await expect_bad_field("an adapter", create(target, model=target.adapter), "model")


async def evaluation_is_not_calibration(target: QuantizerTarget) -> None:
    """A calibration set that is the evaluation set as well is INVALID_ARGUMENT, whichever method."""
    if not target.calibration_dataset:
        raise Skipped("no calibration_dataset was named")
    methods = await target.stub.ListQuantizationMethods(
        service_pb.ListQuantizationMethodsRequest(), **target.call_options
    )
    method = next((method.name for method in methods.methods if method.needs_calibration), "")
    if not method:
        raise Skipped("no method looks at texts")
    dataset = target.calibration_dataset
    calibration = pb.CalibrationSpec(dataset=dataset)
    call = create(target, method=method, calibration=calibration, evaluation_dataset=dataset)
    await expect_bad_field("the calibration set for evaluation", call, "evaluation_dataset")


# Finding


async def unknown_job_is_not_found(target: QuantizerTarget) -> None:
    """Every method is NOT_FOUND for a job that doesn't exist."""
    await _expect_not_found(target, UNKNOWN_JOB)


async def malformed_names_are_refused(target: QuantizerTarget) -> None:
    """A name that isn't ``quantizationJobs/{id}`` is INVALID_ARGUMENT, or NOT_FOUND."""
    for name in ("", "quantizationJobs/", "quantizationJobs", "trainingJobs/abc", "quantizationJobs/a/b"):
        await expect_error(f"the name {name!r}", ask(target, "Get", name), "INVALID_ARGUMENT", "NOT_FOUND")


async def jobs_of_other_tenants_are_not_found(target: QuantizerTarget) -> None:
    """A job is NOT_FOUND for other tenants, in every method, and not on their lists."""
    if not target.other_tenant:
        raise Skipped("no other_tenant was named")
    job = await create(target)
    try:
        other = target.as_other_tenant()
        await _expect_not_found(other, job.name)
        found = await other.stub.ListQuantizationJobs(
            service_pb.ListQuantizationJobsRequest(page_size=1000), **other.call_options
        )
        require(job.name not in [entry.name for entry in found.quantization_jobs], "it is on the other tenant's list")
    finally:
        await cancel_all(target, job.name)


async def jobs_are_listed_newest_first_in_pages(target: QuantizerTarget) -> None:
    """ListQuantizationJobs gives jobs newest first, in pages, filtered by labels and states."""
    label = {"conformance": uuid.uuid4().hex}
    jobs = [await create(target, labels={**label, "number": str(number)}) for number in range(3)]

    async def page(size: int, token: str, **fields: Any) -> tuple[Sequence[str], str]:
        request = service_pb.ListQuantizationJobsRequest(
            **{"labels": label, "page_size": size, "page_token": token, **fields}
        )
        answer = await target.stub.ListQuantizationJobs(request, **target.call_options)
        return [job.name for job in answer.quantization_jobs], answer.next_page_token

    try:
        names, token = await page(100, "")
        require(names == [job.name for job in jobs[::-1]] and not token, f"listed {names}")
        await check_pages("ListQuantizationJobs", page)
        one, _ = await page(100, "", labels={**label, "number": "1"})
        require(one == [jobs[1].name], f"filtered by a label of {jobs[1].name}: {one}")
        none, _ = await page(100, "", states=[S.JOB_STATE_SUCCEEDED])
        require(none == [], f"filtered by SUCCEEDED: {none}")
        await expect_bad_field("page_size -1", page(-1, ""), "page_size")
        await expect_bad_field("a made-up page_token", page(10, "no token of yours"), "page_token")
    finally:
        await cancel_all(target, *(job.name for job in jobs))


# Life


async def final_states_are_final(target: QuantizerTarget) -> None:
    """Cancel, pause and resume of a job in a final state are FAILED_PRECONDITION."""
    job = await cancelled_job(target)
    require(job.HasField("end_time"), "end_time is not set")
    require(not job.result.quantized_model, "a cancelled job has a quantized_model")
    for verb in ("Cancel", "Pause", "Resume"):
        await expect_error(f"{verb} of a cancelled job", ask(target, verb, job.name), "FAILED_PRECONDITION")


async def watch_tells_the_whole_life(target: QuantizerTarget) -> None:
    """WatchQuantizationJob begins with the creation, tells pause, resumption and cancellation, only moves between states as
    JobState allows, ends by itself, and goes on behind a cursor; ListQuantizationJobEvents gives the same, either way
    round."""
    job = await create(target)
    watching = asyncio.ensure_future(watch(target, job.name))
    try:
        await wait_for_state(target, job.name, *_WAITING_OR_AT_WORK)
        await ask(target, "Pause", job.name)
        await wait_for_state(target, job.name, S.JOB_STATE_PAUSED)
        await ask(target, "Resume", job.name)
        await ask(target, "Cancel", job.name)
        async with asyncio.timeout(target.timeout_seconds):
            events = await watching
    finally:
        watching.cancel()
        await cancel_all(target, job.name)
    changes = [event.state_change for event in events if event.WhichOneof("detail") == "state_change"]
    check_changes(changes)
    require(S.JOB_STATE_PAUSED in [change.to_state for change in changes], "the pause was not told")
    require(events[-1].state_change.to_state == S.JOB_STATE_CANCELLED, "the last event is not the final state")
    rest = await watch(target, job.name, events[1].cursor)
    require(rest == events[2:], f"behind event 1 of {len(events)} came {len(rest)}")
    for newest_first in (False, True):
        request = service_pb.ListQuantizationJobEventsRequest(name=job.name, page_size=1000, newest_first=newest_first)
        answer = await target.stub.ListQuantizationJobEvents(request, **target.call_options)
        expected = events[::-1] if newest_first else events
        require(list(answer.events) == expected, f"newest_first={newest_first} lists {len(answer.events)} events")


async def quantization_succeeds(target: QuantizerTarget) -> None:
    """A sound job ends SUCCEEDED with a model, a report, sizes, perplexities and an engine that loaded the model."""
    if not target.run_seconds:
        raise Skipped("run_seconds is 0: no worker was promised")
    job = await create(target, max_perplexity_ratio=1e6)
    try:
        await watch(replace(target, timeout_seconds=target.run_seconds), job.name)
        ended = await wait_for_state(target, job.name, *_FINAL)
    finally:
        await cancel_all(target, job.name)
    require(ended.state == S.JOB_STATE_SUCCEEDED, f"state is {_state(ended)}: {ended.error.message}")
    result = ended.result
    for field in ("model_artifact", "report_artifact"):
        require(getattr(result, field).startswith("artifacts/"), f"{field} is {getattr(result, field)!r}")
    require(result.method == target.method, f"method is {result.method!r}")
    require(0 < result.size_bytes < result.base_size_bytes, f"sizes are {result.size_bytes}, {result.base_size_bytes}")
    require(abs(result.size_ratio - result.size_bytes / result.base_size_bytes) < 1e-6, "size_ratio isn't the ratio")
    require(result.perplexity > 0 and result.base_perplexity > 0 and result.positions > 0, "perplexities are missing")
    require(any(engine.loaded for engine in result.engines), "no engine loaded it")


async def _expect_not_found(target: QuantizerTarget, name: str) -> None:
    for method, call in target.calls_about(name).items():
        await expect_error(f"{method} of {name}", call(), "NOT_FOUND")


def _state(job: pb.QuantizationJob) -> str:
    return job_pb2.JobState.Name(job.state)


#: All rules, in the order they are tried.
QUANTIZER_CHECKS: tuple[Check, ...] = (
    health_is_serving,
    reflection_lists_the_service,
    methods_are_listed,
    created_job_is_complete,
    request_id_makes_create_idempotent,
    validate_only_creates_nothing,
    wrong_fields_are_named,
    unknown_inputs_are_not_found,
    adapters_are_refused,
    evaluation_is_not_calibration,
    unknown_job_is_not_found,
    malformed_names_are_refused,
    jobs_of_other_tenants_are_not_found,
    jobs_are_listed_newest_first_in_pages,
    final_states_are_final,
    watch_tells_the_whole_life,
    quantization_succeeds,
)
