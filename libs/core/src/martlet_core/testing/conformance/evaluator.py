"""The rules of ``martlet.evaluator.v1``."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from martlet.common.v1 import job_pb2
from martlet.evaluator.v1 import evaluation_job_pb2 as pb
from martlet.evaluator.v1 import evaluation_service_pb2 as service_pb

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
from martlet_core.testing.conformance.evaluator_target import (
    SERVICE,
    UNKNOWN_JOB,
    EvaluatorTarget,
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


def _suite(name: str, **options: Any) -> pb.SuiteSpec:
    spec = pb.SuiteSpec(suite=name)
    spec.options.update(options)
    return spec


_WAITING_OR_AT_WORK = (S.JOB_STATE_QUEUED, S.JOB_STATE_RUNNING)
_BEGINNING = (S.JOB_STATE_VALIDATING, *_WAITING_OR_AT_WORK)
_FINAL = (S.JOB_STATE_SUCCEEDED, S.JOB_STATE_FAILED, S.JOB_STATE_CANCELLED)
_BAD_FIELDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("targets", {"targets": []}),
    ("model", {"targets": [pb.EvaluationTarget(name="a")]}),
    ("name", {"targets": [pb.EvaluationTarget(name="a", model="m"), pb.EvaluationTarget(name="a", model="n")]}),
    ("base_url", {"targets": [pb.EvaluationTarget(model="m", engine=pb.TARGET_ENGINE_EXTERNAL)]}),
    ("base_url", {"targets": [pb.EvaluationTarget(model="m", base_url="http://127.0.0.1/v1")]}),
    ("dataset", {"dataset": "not a resource name"}),
    ("dataset", {"dataset": ""}),
    ("suites", {"suites": []}),
    ("suite", {"suites": [pb.SuiteSpec(suite="no-such-suite")]}),
    ("no_such_option", {"suites": [_suite("exact_match", no_such_option=True)]}),
    ("max_rows", {"max_rows": 0}),
    ("concurrency", {"concurrency": 0}),
    ("max_failed_rows", {"max_failed_rows": -1}),
    ("max_tokens", {"sampling": pb.SamplingSpec(max_tokens=0)}),
    ("temperature", {"sampling": pb.SamplingSpec(temperature=2.5)}),
    ("baseline", {"baseline": "no-such-target"}),
    ("seed", {"seed": -1}),
    ("priority", {"resources": pb.EvaluationResources(priority=10)}),
    ("max_attempts", {"resources": pb.EvaluationResources(max_attempts=0)}),
    ("request_id", {"request_id": "no spaces"}),
    ("display_name", {"display_name": "x" * 129}),
)


async def health_is_serving(target: EvaluatorTarget) -> None:
    """The standard health service answers SERVING for the server and for the service by name."""
    await check_health(target, SERVICE)


async def reflection_lists_the_service(target: EvaluatorTarget) -> None:
    """Where server reflection is on, it lists the service."""
    await check_reflection(target, SERVICE)


async def suites_are_listed(target: EvaluatorTarget) -> None:
    """ListEvaluationSuites gives suites with names of their own, a description and metrics, in pages."""

    async def page(size: int, token: str) -> tuple[Sequence[str], str]:
        request = service_pb.ListEvaluationSuitesRequest(page_size=size, page_token=token)
        answer = await target.stub.ListEvaluationSuites(request, **target.call_options)
        for suite in answer.suites:
            require(suite.description and suite.metrics, f"the suite is {suite}")
        return [suite.name for suite in answer.suites], answer.next_page_token

    names, _ = await page(1000, "")
    require("exact_match" in names, f"the suites are {names}")
    require(len(set(names)) == len(names), f"names are not unique: {names}")
    await check_pages("ListEvaluationSuites", page)
    await expect_bad_field("page_size 1001", page(1001, ""), "page_size")


# Creating


async def created_job_is_complete(target: EvaluatorTarget) -> None:
    """CreateEvaluationJob returns the job with name, state and times, and with display name, labels and spec as they were
    given; GetEvaluationJob returns the same."""
    request = job_request(target, display_name="Größe 7", labels={"team": "birds"}, category_field="")
    job = await target.stub.CreateEvaluationJob(request, **target.call_options)
    try:
        kind, _, job_id = job.name.partition("/")
        require(kind == "evaluationJobs" and job_id and "/" not in job_id, f"name is {job.name!r}")
        given = request.evaluation_job
        require(job.display_name == given.display_name, f"display_name is {job.display_name!r}")
        require(dict(job.labels) == dict(given.labels), f"labels are {dict(job.labels)}")
        require(job.spec == given.spec, f"spec is {job.spec}")
        require(job.state in _BEGINNING, f"state is {_state(job)}")
        require(job.HasField("create_time") and job.HasField("update_time"), "create_time or update_time is not set")
        require(not job.HasField("end_time") and not job.HasField("error"), "a new job has an end_time or an error")
        again = await ask(target, "Get", job.name)
        for field in ("name", "display_name", "labels", "create_time", "spec"):
            require(getattr(again, field) == getattr(job, field), f"GetEvaluationJob gives another {field}")
    finally:
        await cancel_all(target, job.name)


async def request_id_makes_create_idempotent(target: EvaluatorTarget) -> None:
    """The same request_id again returns the job made the first time; with another spec it is ALREADY_EXISTS."""
    request = job_request(target, request_id=f"conformance-{uuid.uuid4().hex}")
    first = await target.stub.CreateEvaluationJob(request, **target.call_options)
    try:
        again = await target.stub.CreateEvaluationJob(request, **target.call_options)
        require(again.name == first.name, f"made {first.name}, then {again.name}")
        other = job_request(target, request_id=request.request_id, seed=12345)
        call = target.stub.CreateEvaluationJob(other, **target.call_options)
        await expect_error("the same request_id with another spec", call, "ALREADY_EXISTS")
    finally:
        await cancel_all(target, first.name)


async def validate_only_creates_nothing(target: EvaluatorTarget) -> None:
    """With validate_only the job is returned as it would be and nothing is created; a wrong spec is refused all the
    same."""
    label = uuid.uuid4().hex
    request = job_request(target, labels={"conformance": label}, validate_only=True)
    job = await target.stub.CreateEvaluationJob(request, **target.call_options)
    require(job.spec == request.evaluation_job.spec, f"spec is {job.spec}")
    listing = service_pb.ListEvaluationJobsRequest(labels={"conformance": label})
    found = await target.stub.ListEvaluationJobs(listing, **target.call_options)
    require(not found.evaluation_jobs, f"it created {[job.name for job in found.evaluation_jobs]}")
    await expect_bad_field("validate_only with a wrong seed", create(target, validate_only=True, seed=-1), "seed")


async def wrong_fields_are_named(target: EvaluatorTarget) -> None:
    """A field that is missing, malformed or out of the range that the contract gives is INVALID_ARGUMENT, named in
    BadRequest."""
    for field, changes in _BAD_FIELDS:
        await expect_bad_field(f"a wrong {field}", create(target, **changes), field)


async def unknown_inputs_are_not_found(target: EvaluatorTarget) -> None:
    """A model or data set that doesn't exist is NOT_FOUND, before anything is created."""
    strangers = [pb.EvaluationTarget(model="no-such-model-anywhere")]
    await expect_error("an unknown model", create(target, targets=strangers), "NOT_FOUND")
    missing = create(target, dataset="artifacts/nosuchartifact0000")
    await expect_error("an unknown dataset", missing, "NOT_FOUND")


async def addresses_must_be_allowed(target: EvaluatorTarget) -> None:
    """An external address that the operator didn't allow is PERMISSION_DENIED: the evaluator stands inside the network."""
    inside = pb.EvaluationTarget(model="m", engine=pb.TARGET_ENGINE_EXTERNAL, base_url="http://169.254.169.254/v1")
    await expect_error("an address inside the network", create(target, targets=[inside]), "PERMISSION_DENIED")


async def missing_category_is_named(target: EvaluatorTarget) -> None:
    """A category_field that the rows don't have is INVALID_ARGUMENT."""
    call = create(target, category_field="no-such-field")
    await expect_error("an unknown category_field", call, "INVALID_ARGUMENT")


# Finding


async def unknown_job_is_not_found(target: EvaluatorTarget) -> None:
    """Every method is NOT_FOUND for a job that doesn't exist."""
    await _expect_not_found(target, UNKNOWN_JOB)


async def malformed_names_are_refused(target: EvaluatorTarget) -> None:
    """A name that isn't ``evaluationJobs/{id}`` is INVALID_ARGUMENT, or NOT_FOUND."""
    for name in ("", "evaluationJobs/", "evaluationJobs", "trainingJobs/abc", "evaluationJobs/a/b"):
        await expect_error(f"the name {name!r}", ask(target, "Get", name), "INVALID_ARGUMENT", "NOT_FOUND")


async def jobs_of_other_tenants_are_not_found(target: EvaluatorTarget) -> None:
    """A job is NOT_FOUND for other tenants, in every method, and not on their lists."""
    if not target.other_tenant:
        raise Skipped("no other_tenant was named")
    job = await create(target)
    try:
        other = target.as_other_tenant()
        await _expect_not_found(other, job.name)
        found = await other.stub.ListEvaluationJobs(
            service_pb.ListEvaluationJobsRequest(page_size=1000), **other.call_options
        )
        require(job.name not in [entry.name for entry in found.evaluation_jobs], "it is on the other tenant's list")
    finally:
        await cancel_all(target, job.name)


async def jobs_are_listed_newest_first_in_pages(target: EvaluatorTarget) -> None:
    """ListEvaluationJobs gives jobs newest first, in pages, filtered by labels and states."""
    label = {"conformance": uuid.uuid4().hex}
    jobs = [await create(target, labels={**label, "number": str(number)}) for number in range(3)]

    async def page(size: int, token: str, **fields: Any) -> tuple[Sequence[str], str]:
        request = service_pb.ListEvaluationJobsRequest(
            **{"labels": label, "page_size": size, "page_token": token, **fields}
        )
        answer = await target.stub.ListEvaluationJobs(request, **target.call_options)
        return [job.name for job in answer.evaluation_jobs], answer.next_page_token

    try:
        names, token = await page(100, "")
        require(names == [job.name for job in jobs[::-1]] and not token, f"listed {names}")
        await check_pages("ListEvaluationJobs", page)
        one, _ = await page(100, "", labels={**label, "number": "1"})
        require(one == [jobs[1].name], f"filtered by a label of {jobs[1].name}: {one}")
        none, _ = await page(100, "", states=[S.JOB_STATE_SUCCEEDED])
        require(none == [], f"filtered by SUCCEEDED: {none}")
        await expect_bad_field("page_size -1", page(-1, ""), "page_size")
        await expect_bad_field("a made-up page_token", page(10, "no token of yours"), "page_token")
    finally:
        await cancel_all(target, *(job.name for job in jobs))


# Life


async def final_states_are_final(target: EvaluatorTarget) -> None:
    """Cancel, pause and resume of a job in a final state are FAILED_PRECONDITION."""
    job = await cancelled_job(target)
    require(job.HasField("end_time"), "end_time is not set")
    require(not job.result.report_artifact, "a cancelled job has a report")
    for verb in ("Cancel", "Pause", "Resume"):
        await expect_error(f"{verb} of a cancelled job", ask(target, verb, job.name), "FAILED_PRECONDITION")


async def watch_tells_the_whole_life(target: EvaluatorTarget) -> None:
    """WatchEvaluationJob begins with the creation, tells pause, resumption and cancellation, only moves between states as
    JobState allows, ends by itself, and goes on behind a cursor; ListEvaluationJobEvents gives the same, either way
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
        request = service_pb.ListEvaluationJobEventsRequest(name=job.name, page_size=1000, newest_first=newest_first)
        answer = await target.stub.ListEvaluationJobEvents(request, **target.call_options)
        expected = events[::-1] if newest_first else events
        require(list(answer.events) == expected, f"newest_first={newest_first} lists {len(answer.events)} events")


async def evaluation_succeeds(target: EvaluatorTarget) -> None:
    """A sound job ends SUCCEEDED with a report, records, counts and the metrics of each target."""
    if not target.run_seconds:
        raise Skipped("run_seconds is 0: no worker was promised")
    job = await create(target)
    try:
        await watch(replace(target, timeout_seconds=target.run_seconds), job.name)
        ended = await wait_for_state(target, job.name, *_FINAL)
    finally:
        await cancel_all(target, job.name)
    require(ended.state == S.JOB_STATE_SUCCEEDED, f"state is {_state(ended)}: {ended.error.message}")
    result = ended.result
    for field in ("report_artifact", "records_artifact"):
        require(getattr(result, field).startswith("artifacts/"), f"{field} is {getattr(result, field)!r}")
    require(0 < result.rows_used <= 4, f"rows_used is {result.rows_used}")
    require(result.rows_failed == 0, f"rows_failed is {result.rows_failed}")
    require([found.name for found in result.targets] == ["base"], f"the targets are {result.targets}")
    metric = result.targets[0].metrics["exact_match.accuracy"]
    require(0 <= metric.value <= 1, f"exact_match.accuracy is {metric.value}")


async def _expect_not_found(target: EvaluatorTarget, name: str) -> None:
    for method, call in target.calls_about(name).items():
        await expect_error(f"{method} of {name}", call(), "NOT_FOUND")


def _state(job: pb.EvaluationJob) -> str:
    return job_pb2.JobState.Name(job.state)


#: All rules, in the order they are tried.
EVALUATOR_CHECKS: tuple[Check, ...] = (
    health_is_serving,
    reflection_lists_the_service,
    suites_are_listed,
    created_job_is_complete,
    request_id_makes_create_idempotent,
    validate_only_creates_nothing,
    wrong_fields_are_named,
    unknown_inputs_are_not_found,
    addresses_must_be_allowed,
    missing_category_is_named,
    unknown_job_is_not_found,
    malformed_names_are_refused,
    jobs_of_other_tenants_are_not_found,
    jobs_are_listed_newest_first_in_pages,
    final_states_are_final,
    watch_tells_the_whole_life,
    evaluation_succeeds,
)
