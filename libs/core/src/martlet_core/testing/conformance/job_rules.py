"""The rules that every kind of job keeps: creating and finding here, the life of a job in ``job_life_rules``."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from martlet.common.v1 import job_pb2

from martlet_core.testing.conformance.checks import (
    check_health,
    check_pages,
    check_reflection,
    expect_bad_field,
    expect_error,
    require,
)
from martlet_core.testing.conformance.job_life_rules import EVENT_TRIALS, LIFE_TRIALS, PAUSE_TRIALS, job_succeeds
from martlet_core.testing.conformance.jobs import BEGINNING, JobKind, Jobs, state_name
from martlet_core.testing.conformance.rules import Rule

JobTrial = Callable[[Jobs], Awaitable[None]]


async def health_is_serving(jobs: Jobs) -> None:
    """The standard health service answers SERVING for the server and for {service} by name."""
    await check_health(jobs.target, jobs.kind.descriptor.full_name)


async def reflection_lists_the_service(jobs: Jobs) -> None:
    """Where server reflection is on, it lists {service}."""
    await check_reflection(jobs.target, jobs.kind.descriptor.full_name)


# Creating


async def created_job_is_complete(jobs: Jobs) -> None:
    """Create{noun} returns the job with name, state and times, and with display name, labels and spec as they were given;
    Get{noun} returns the same."""
    request = jobs.request(display_name="Größe 7", labels={"team": "birds"})
    given = request[jobs.kind.field]
    job = await jobs.call("Create", **request)
    try:
        collection, _, job_id = job.name.partition("/")
        require(collection == jobs.kind.collection and job_id and "/" not in job_id, f"name is {job.name!r}")
        require(job.display_name == given.display_name, f"display_name is {job.display_name!r}")
        require(dict(job.labels) == dict(given.labels), f"labels are {dict(job.labels)}")
        require(job.spec == given.spec, f"spec is {job.spec}")
        require(job.state in BEGINNING, f"state is {state_name(job.state)}")
        require(job.HasField("create_time") and job.HasField("update_time"), "create_time or update_time is not set")
        require(not job.HasField("end_time") and not job.HasField("error"), "a new job has an end_time or an error")
        again = await jobs.ask("Get", job.name)
        for field in ("name", "display_name", "labels", "create_time", "spec"):
            require(getattr(again, field) == getattr(job, field), f"Get{jobs.kind.noun} gives another {field}")
    finally:
        await jobs.clean_up(job.name)


async def output_only_fields_are_ignored(jobs: Jobs) -> None:
    """Create{noun} doesn't read name, state and result of the request's job."""
    request = jobs.request()
    wish = request[jobs.kind.field]
    wish.name, wish.state = f"{jobs.kind.collection}/mine", job_pb2.JOB_STATE_SUCCEEDED
    setattr(wish.result, jobs.kind.result_field, "mine")
    job = await jobs.call("Create", **request)
    try:
        require(job.name != wish.name, "the caller chose the name")
        require(job.state in BEGINNING, f"state is {state_name(job.state)}")
        require(not getattr(job.result, jobs.kind.result_field), "the caller chose the result")
    finally:
        await jobs.clean_up(job.name)


async def request_id_makes_create_idempotent(jobs: Jobs) -> None:
    """The same request_id again returns the job made the first time, with another spec it is ALREADY_EXISTS, and calls
    without one make jobs of their own."""
    request_id = f"conformance-{uuid.uuid4().hex}"
    async with jobs.made(request_id=request_id) as first:
        again = await jobs.create(request_id=request_id)
        require(again.name == first.name, f"made {first.name}, then {again.name}")
        other = jobs.create(request_id=request_id, **jobs.kind.another)
        await expect_error("the same request_id with another spec", other, "ALREADY_EXISTS")
    async with jobs.made() as one, jobs.made() as another:
        require(one.name != another.name, "two calls without a request_id made one job")


async def validate_only_creates_nothing(jobs: Jobs) -> None:
    """With validate_only the job is returned as it would be and nothing is created; a wrong spec is refused all the
    same."""
    labels = {"conformance": uuid.uuid4().hex}
    request = jobs.request(labels=labels, validate_only=True)
    job = await jobs.call("Create", **request)
    require(job.spec == request[jobs.kind.field].spec, f"spec is {job.spec}")
    found, _ = await jobs.page(100, "", labels=labels)
    require(not found, f"it created {found}")
    field, changes = jobs.kind.bad_fields[-1]
    await expect_bad_field(f"validate_only with a wrong {field}", jobs.create(validate_only=True, **changes), field)


async def wrong_fields_are_named(jobs: Jobs) -> None:
    """A field that is missing, malformed or out of the range that the contract gives is INVALID_ARGUMENT, named in
    BadRequest."""
    for field, changes in (*_BAD_FIELDS_OF_ALL, *jobs.kind.bad_fields):
        await expect_bad_field(f"a wrong {field}", jobs.create(**changes), field)


async def unknown_inputs_are_not_found(jobs: Jobs) -> None:
    """What the spec names and doesn't exist is NOT_FOUND, before anything is created."""
    for what, changes in jobs.kind.unknown_inputs:
        await expect_error(f"an unknown {what}", jobs.create(**changes), "NOT_FOUND")


# Finding


async def unknown_job_is_not_found(jobs: Jobs) -> None:
    """Every method that takes a job's name is NOT_FOUND for a job that doesn't exist."""
    await _expect_not_found(jobs, f"{jobs.kind.collection}/nosuchjob00000000000")


async def malformed_names_are_refused(jobs: Jobs) -> None:
    """A name that isn't ``{collection}/{id}`` is INVALID_ARGUMENT, or NOT_FOUND."""
    ours = jobs.kind.collection
    for name in ("", f"{ours}/", ours, "otherJobs/abc", f"{ours}/a/b", f"../{ours}/a"):
        await expect_error(f"the name {name!r}", jobs.ask("Get", name), "INVALID_ARGUMENT", "NOT_FOUND")


async def jobs_of_other_tenants_are_not_found(jobs: Jobs) -> None:
    """A job is NOT_FOUND for other tenants, in every method, and not on their lists."""
    others = Jobs(jobs.kind, jobs.target.as_other_tenant())
    async with jobs.made() as job:
        await _expect_not_found(others, job.name)
        listed, _ = await others.page(1000, "")
        require(job.name not in listed, "it is on the other tenant's list")


async def inputs_of_other_tenants_are_not_found(jobs: Jobs) -> None:
    """What a job is given belongs to its tenant: a job of another tenant that names the same is NOT_FOUND."""
    others = Jobs(jobs.kind, jobs.target.as_other_tenant())
    await expect_error("another tenant's input", others.create(), "NOT_FOUND")


async def jobs_are_listed_newest_first_in_pages(jobs: Jobs) -> None:
    """List{noun}s gives jobs of this kind only, the newest first, in pages of at most page_size, and filters by labels."""
    label = {"conformance": uuid.uuid4().hex}
    async with (
        jobs.made(labels={**label, "number": "0"}) as first,
        jobs.made(labels={**label, "number": "1"}) as second,
        jobs.made(labels={**label, "number": "2"}) as third,
    ):
        page = partial(jobs.page, labels=label)
        names, token = await page(100, "")
        newest_first = [third.name, second.name, first.name]
        require(names == newest_first, f"listed {names}, created {newest_first[::-1]}")
        require(token == "", f"the last page has the token {token!r}")
        await check_pages(f"List{jobs.kind.noun}s", page)
        one, _ = await jobs.page(100, "", labels={**label, "number": "1"})
        require(one == [second.name], f"filtered by a label of {second.name}: {one}")
        everything, _ = await jobs.page(1000, "")
        require(all(name.startswith(f"{jobs.kind.collection}/") for name in everything), f"listed {everything}")
        for size in (-1, 1001):
            await expect_bad_field(f"page_size {size}", page(size, ""), "page_size")
        await expect_bad_field("a made-up page_token", page(10, "no token of yours"), "page_token")


async def _expect_not_found(jobs: Jobs, name: str) -> None:
    for method, call in jobs.calls_about(name).items():
        await expect_error(f"{method} of {name}", call(), "NOT_FOUND")


_BAD_FIELDS_OF_ALL: tuple[tuple[str, dict[str, Any]], ...] = (
    ("request_id", {"request_id": "no spaces"}),
    ("display_name", {"display_name": "x" * 129}),
)
_TRIALS: tuple[JobTrial, ...] = (
    health_is_serving,
    reflection_lists_the_service,
    created_job_is_complete,
    output_only_fields_are_ignored,
    request_id_makes_create_idempotent,
    validate_only_creates_nothing,
    wrong_fields_are_named,
    unknown_inputs_are_not_found,
    unknown_job_is_not_found,
    malformed_names_are_refused,
    jobs_of_other_tenants_are_not_found,
    jobs_are_listed_newest_first_in_pages,
    *LIFE_TRIALS,
)
#: What is tried on every kind of job that has what the trial is about.
COMMON_TRIALS: tuple[JobTrial, ...] = (
    *_TRIALS,
    inputs_of_other_tenants_are_not_found,
    *PAUSE_TRIALS,
    *EVENT_TRIALS,
    job_succeeds,
)


def rules_of_jobs(kind: JobKind, *more: JobTrial) -> tuple[Rule, ...]:
    """All rules of a kind of job in the order they are tried; ``more`` are rules of this kind alone."""
    trials = [*_TRIALS, *more]
    if kind.inputs:
        trials.append(inputs_of_other_tenants_are_not_found)
    if kind.offers("Pause"):
        trials += PAUSE_TRIALS
    if kind.offers("List", "Events"):
        trials += EVENT_TRIALS
    words = {"noun": kind.noun, "service": kind.service, "collection": kind.collection}
    rules = [_rule(kind, trial, words) for trial in trials]
    return (*rules, _rule(kind, job_succeeds, {"success": kind.success}))


def _rule(kind: JobKind, trial: JobTrial, words: dict[str, str]) -> Rule:
    async def try_on(target: Any) -> None:
        jobs = Jobs(kind, target)
        if kind.optional:
            await jobs.require_offered()
        await trial(jobs)

    rule = Rule.of(trial, **words)
    return Rule(kind.prefix + rule.name, rule.sentence, try_on)
