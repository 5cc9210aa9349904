"""The rules of ``martlet.trainer.v1``: TrainingService here and in ``trainer_life``, MergeService in ``trainer_merge``."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import training_job_pb2 as pb
from martlet.trainer.v1 import training_service_pb2 as service_pb

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
from martlet_core.testing.conformance.trainer_life import LIFE_CHECKS
from martlet_core.testing.conformance.trainer_merge import MERGE_CHECKS
from martlet_core.testing.conformance.trainer_target import (
    SERVICE,
    UNKNOWN_JOB,
    TrainerTarget,
    cancel_all,
    create,
    get,
    job_request,
)

_BAD_FIELDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("base_model", {"base_model": ""}),
    ("training_dataset", {"training_dataset": ""}),
    ("training_dataset", {"training_dataset": "not a resource name"}),
    ("recipe", {"recipe": "no-such-recipe"}),
    ("suffix", {"suffix": "no spaces / slashes"}),
    ("seed", {"seed": -1}),
    ("kind", {"tuner": pb.TunerConfig(kind="no-such-tuner")}),
    ("lora_rank", {"tuner": pb.TunerConfig(lora_rank=0)}),
    ("lora_dropout", {"tuner": pb.TunerConfig(lora_dropout=1.5)}),
    ("learning_rate", {"hyperparameters": pb.Hyperparameters(learning_rate=-1e-4)}),
    ("epoch_count", {"hyperparameters": pb.Hyperparameters(epoch_count=0)}),
    ("max_steps", {"hyperparameters": pb.Hyperparameters(max_steps=0)}),
    ("per_device_batch_size", {"hyperparameters": pb.Hyperparameters(per_device_batch_size=0)}),
    ("learning_rate_schedule", {"hyperparameters": pb.Hyperparameters(learning_rate_schedule="zigzag")}),
    ("warmup_ratio", {"hyperparameters": pb.Hyperparameters(warmup_ratio=2.0)}),
    ("max_length", {"data": pb.DataConfig(max_length=1)}),
    ("validation_split", {"data": pb.DataConfig(validation_split=0.9)}),
    ("priority", {"resources": pb.ResourceConfig(priority=10)}),
    ("max_attempts", {"resources": pb.ResourceConfig(max_attempts=0)}),
    ("interval_steps", {"checkpoints": pb.CheckpointConfig(interval_steps=0)}),
)


async def health_is_serving(target: TrainerTarget) -> None:
    """The standard health service answers SERVING for the server and for the service by name."""
    await check_health(target, SERVICE)


async def reflection_lists_the_service(target: TrainerTarget) -> None:
    """Where server reflection is on, it lists the service."""
    await check_reflection(target, SERVICE)


async def base_models_are_listed(target: TrainerTarget) -> None:
    """ListBaseModels gives models with names of their own, in pages."""

    async def page(size: int, token: str) -> tuple[Sequence[str], str]:
        request = service_pb.ListBaseModelsRequest(page_size=size, page_token=token)
        answer = await target.stub.ListBaseModels(request, **target.call_options)
        return [model.name for model in answer.base_models], answer.next_page_token

    names, _ = await page(1000, "")
    require(names and all(names), f"the base models are {names}")
    require(len(set(names)) == len(names), f"names are not unique: {names}")
    await check_pages("ListBaseModels", page)
    await expect_bad_field("page_size 1001", page(1001, ""), "page_size")


# Creating


async def created_job_is_complete(target: TrainerTarget) -> None:
    """CreateTrainingJob returns the job with name, state and times, and with display name, labels and spec as they were
    given; GetTrainingJob returns the same."""
    request = job_request(target, display_name="Größe 7", labels={"team": "birds"}, suffix="conf-1")
    job = await target.stub.CreateTrainingJob(request, **target.call_options)
    try:
        kind, _, job_id = job.name.partition("/")
        require(kind == "trainingJobs" and job_id and "/" not in job_id, f"name is {job.name!r}")
        given = request.training_job
        require(job.display_name == given.display_name, f"display_name is {job.display_name!r}")
        require(dict(job.labels) == dict(given.labels), f"labels are {dict(job.labels)}")
        require(job.state in _BEGINNING, f"state is {job_pb2.JobState.Name(job.state)}")
        require(job.HasField("create_time") and job.HasField("update_time"), "create_time or update_time is not set")
        require(not job.HasField("end_time") and not job.HasField("error"), "a new job has an end_time or an error")
        for field in ("base_model", "training_dataset", "suffix"):
            value = getattr(job.spec, field)
            require(value == getattr(given.spec, field), f"spec.{field} is {value!r}")
        steps = job.spec.hyperparameters.max_steps
        require(steps == given.spec.hyperparameters.max_steps, f"spec.hyperparameters.max_steps is {steps}")
        again = await get(target, job.name)
        for field in ("name", "display_name", "labels", "create_time", "spec"):
            require(getattr(again, field) == getattr(job, field), f"GetTrainingJob gives another {field}")
    finally:
        await cancel_all(target, job.name)


async def output_only_fields_are_ignored(target: TrainerTarget) -> None:
    """Name, state and result of the request's job are not read."""
    request = job_request(target)
    request.training_job.name = "trainingJobs/mine"
    request.training_job.state = job_pb2.JOB_STATE_SUCCEEDED
    request.training_job.result.fine_tuned_model = "mine"
    job = await target.stub.CreateTrainingJob(request, **target.call_options)
    try:
        require(job.name != "trainingJobs/mine", "the caller chose the name")
        require(job.state in _BEGINNING, f"state is {job_pb2.JobState.Name(job.state)}")
        require(not job.result.fine_tuned_model, "the caller chose the result")
    finally:
        await cancel_all(target, job.name)


async def request_id_makes_create_idempotent(target: TrainerTarget) -> None:
    """The same request_id again returns the job made the first time; with another spec it is ALREADY_EXISTS."""
    request = job_request(target, request_id=f"conformance-{uuid.uuid4().hex}")
    first = await target.stub.CreateTrainingJob(request, **target.call_options)
    try:
        again = await target.stub.CreateTrainingJob(request, **target.call_options)
        require(again.name == first.name, f"made {first.name}, then {again.name}")
        other = job_request(target, request_id=request.request_id, seed=12345)
        call = target.stub.CreateTrainingJob(other, **target.call_options)
        await expect_error("the same request_id with another spec", call, "ALREADY_EXISTS")
        unnamed = [await create(target) for _ in range(2)]
        require(unnamed[0].name != unnamed[1].name, "two calls without a request_id made one job")
        await cancel_all(target, *(job.name for job in unnamed))
    finally:
        await cancel_all(target, first.name)


async def validate_only_creates_nothing(target: TrainerTarget) -> None:
    """With validate_only the job is returned as it would be and nothing is created; a wrong spec is refused all the
    same."""
    label = uuid.uuid4().hex
    request = job_request(target, labels={"conformance": label}, validate_only=True)
    job = await target.stub.CreateTrainingJob(request, **target.call_options)
    require(job.spec.base_model == target.base_model, f"spec.base_model is {job.spec.base_model!r}")
    listing = service_pb.ListTrainingJobsRequest(labels={"conformance": label})
    found = await target.stub.ListTrainingJobs(listing, **target.call_options)
    require(not found.training_jobs, f"it created {[job.name for job in found.training_jobs]}")
    wrong = job_request(target, validate_only=True, tuner=pb.TunerConfig(lora_rank=0))
    call = target.stub.CreateTrainingJob(wrong, **target.call_options)
    await expect_bad_field("validate_only with a wrong rank", call, "lora_rank")


async def wrong_fields_are_named(target: TrainerTarget) -> None:
    """A field that is missing, malformed or out of the range that the contract gives is INVALID_ARGUMENT, named in
    BadRequest."""
    for field, changes in _BAD_FIELDS:
        call = target.stub.CreateTrainingJob(job_request(target, **changes), **target.call_options)
        await expect_bad_field(f"a wrong {field}", call, field)
    for what, changes in (("request_id", {"request_id": "no spaces"}), ("display_name", {"display_name": "x" * 129})):
        call = target.stub.CreateTrainingJob(job_request(target, **changes), **target.call_options)
        await expect_bad_field(f"a wrong {what}", call, what)


async def unknown_inputs_are_not_found(target: TrainerTarget) -> None:
    """A base model or data set that doesn't exist is NOT_FOUND, before anything is created."""
    for field, value in (
        ("base_model", "no-such-model-anywhere"),
        ("training_dataset", "artifacts/nosuchartifact0000"),
    ):
        call = target.stub.CreateTrainingJob(job_request(target, **{field: value}), **target.call_options)
        await expect_error(f"an unknown {field}", call, "NOT_FOUND")


# Finding


async def unknown_job_is_not_found(target: TrainerTarget) -> None:
    """Every method is NOT_FOUND for a job that doesn't exist."""
    await _expect_not_found(target, UNKNOWN_JOB)


async def malformed_names_are_refused(target: TrainerTarget) -> None:
    """A name that isn't ``trainingJobs/{id}`` is INVALID_ARGUMENT, or NOT_FOUND."""
    for name in ("", "trainingJobs/", "trainingJobs", "mergeJobs/abc", "trainingJobs/a/b", "../trainingJobs/a"):
        await expect_error(f"the name {name!r}", get(target, name), "INVALID_ARGUMENT", "NOT_FOUND")


async def jobs_of_other_tenants_are_not_found(target: TrainerTarget) -> None:
    """A job is NOT_FOUND for other tenants, in every method, and not on their lists."""
    if not target.other_tenant:
        raise Skipped("no other_tenant was named")
    job = await create(target)
    try:
        other = target.as_other_tenant()
        await _expect_not_found(other, job.name)
        listed = await other.stub.ListTrainingJobs(
            service_pb.ListTrainingJobsRequest(page_size=1000), **other.call_options
        )
        require(job.name not in [found.name for found in listed.training_jobs], "another tenant's list has it")
    finally:
        await cancel_all(target, job.name)


async def jobs_are_listed_newest_first_in_pages(target: TrainerTarget) -> None:
    """ListTrainingJobs gives the newest first, in pages of at most page_size, and filters by labels and states."""
    label = {"conformance": uuid.uuid4().hex}
    jobs = [await create(target, labels={**label, "number": str(number)}) for number in range(3)]
    try:
        newest_first = [job.name for job in reversed(jobs)]

        async def page(size: int, token: str, **filters: Any) -> tuple[Sequence[str], str]:
            request = service_pb.ListTrainingJobsRequest(
                page_size=size, page_token=token, **{"labels": label, **filters}
            )
            answer = await target.stub.ListTrainingJobs(request, **target.call_options)
            return [job.name for job in answer.training_jobs], answer.next_page_token

        names, token = await page(100, "")
        require(names == newest_first, f"listed {names}, created {newest_first[::-1]}")
        require(token == "", f"the last page has the token {token!r}")
        await check_pages("ListTrainingJobs", page)
        one, _ = await page(100, "", labels={**label, "number": "1"})
        require(one == [jobs[1].name], f"filtered by a label of {jobs[1].name}: {one}")
        none, _ = await page(100, "", states=[job_pb2.JOB_STATE_SUCCEEDED])
        require(none == [], f"filtered by SUCCEEDED: {none}")
        for size in (-1, 1001):
            await expect_bad_field(f"page_size {size}", page(size, ""), "page_size")
        await expect_bad_field("a made-up page_token", page(10, "no token of yours"), "page_token")
    finally:
        await cancel_all(target, *(job.name for job in jobs))


async def _expect_not_found(target: TrainerTarget, name: str) -> None:
    for method, call in target.calls_about(name).items():
        await expect_error(f"{method} of {name}", call(), "NOT_FOUND")


_BEGINNING = (job_pb2.JOB_STATE_VALIDATING, job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING)

#: All rules, in the order they are tried.
TRAINER_CHECKS: tuple[Check, ...] = (
    health_is_serving,
    reflection_lists_the_service,
    base_models_are_listed,
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
    *LIFE_CHECKS,
    *MERGE_CHECKS,
)
