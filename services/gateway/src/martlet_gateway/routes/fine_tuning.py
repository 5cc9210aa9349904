"""/v1/fine_tuning/jobs: OpenAI's fine-tuning API on top of trainer.v1."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import training_job_pb2, training_service_pb2
from martlet_core.errors import InvalidArgument, MartletError, NotFound
from martlet_core.model_rules import parse_hub_id
from starlette.responses import Response, StreamingResponse

from martlet_gateway import convert, idempotency, job_request
from martlet_gateway.context import Gateway, GatewayContext, Json, in_thread, tenant
from martlet_gateway.errors import envelope_bytes
from martlet_gateway.file_store import no_such_file
from martlet_gateway.routes.files import page
from martlet_gateway.schemas import CreateFineTuningJob

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

Limit = Annotated[int, Query(ge=1, le=1000)]
_PAGE = 1000
_JOB_ROUTE = "/v1/fine_tuning/jobs"


@router.post("")
async def create_job(body: CreateFineTuningJob, request: Request, gateway: Gateway) -> Json:
    """Create a job. A retry by the stock client, or with the same ``Idempotency-Key``, returns the job made first."""
    rows_may_be_bad = _skips_bad_rows(body)
    await _check_file(gateway, body.training_file, "training_file", rows_may_be_bad)
    if body.validation_file:
        await _check_file(gateway, body.validation_file, "validation_file", rows_may_be_bad)
    raw = await request.body()
    request_id = await idempotency.request_id_for(gateway.retries, request.headers, tenant(), _JOB_ROUTE, raw)
    message = job_request.build(body, request_id)
    with job_request.rest_names(body):
        job = await gateway.stages.trainer.call("training", "CreateTrainingJob", message)
    return _answer(job)


async def _check_file(gateway: GatewayContext, file_id: str, param: str, rows_may_be_bad: bool) -> None:
    if parse_hub_id(file_id):
        return  # a hub's data set, which a worker fetches
    try:
        stored = await in_thread(gateway.files.get, tenant(), file_id)
    except NotFound as error:
        raise no_such_file(file_id, param) from error
    if stored.purpose != "fine-tune":
        raise InvalidArgument.field(
            param, f"{file_id} has purpose `{stored.purpose}`; upload it with purpose `fine-tune`."
        )
    if stored.status == "error" and not rows_may_be_bad:
        raise InvalidArgument.field(
            param,
            f"`{stored.filename}`: {stored.status_details}. Mend the file, or leave such rows out with "
            "martlet.data.on_bad_rows `skip`.",
            reason=f"INVALID_{param.upper()}",
        )


def _skips_bad_rows(body: CreateFineTuningJob) -> bool:
    extension = body.martlet or {}
    data = extension.get("data")
    choice = data.get("on_bad_rows") if isinstance(data, dict) else extension.get("on_bad_rows")
    return isinstance(choice, str) and choice.lower() in ("skip", "on_bad_rows_skip")


@router.get("")
async def list_jobs(request: Request, gateway: Gateway, after: str | None = None, limit: Limit = 20) -> Json:
    """The tenant's jobs, newest first; ``metadata[key]=value`` keeps those that carry it, ``metadata=null`` those that
    carry none.
    """
    labels = {
        k[len("metadata[") : -1]: v
        for k, v in request.query_params.items()
        if k.startswith("metadata[") and k.endswith("]")
    }
    without = request.query_params.get("metadata") == "null"
    token = convert.job_name(after).removeprefix("trainingJobs/") if after else ""
    found: list[dict[str, Any]] = []
    while True:
        message = training_service_pb2.ListTrainingJobsRequest(
            page_size=min(limit + 1, _PAGE), page_token=token, labels=labels
        )
        response = await gateway.stages.trainer.call("training", "ListTrainingJobs", message)
        found += [convert.to_job(job, tenant()) for job in response.training_jobs if not (without and job.labels)]
        token = response.next_page_token
        if not token or len(found) > limit:
            return Json(page(found[:limit], len(found) > limit))


@router.get("/{fine_tuning_job_id}")
async def retrieve_job(fine_tuning_job_id: str, gateway: Gateway) -> Json:
    """One job."""
    return _answer(await _get(gateway, fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/cancel")
async def cancel_job(fine_tuning_job_id: str, gateway: Gateway) -> Json:
    """Stop a job for good. 409 when it is over."""
    message = training_service_pb2.CancelTrainingJobRequest(name=convert.job_name(fine_tuning_job_id))
    return _answer(await _call(gateway, "CancelTrainingJob", message))


@router.post("/{fine_tuning_job_id}/pause")
async def pause_job(fine_tuning_job_id: str, gateway: Gateway) -> Json:
    """Have a job write a checkpoint and give its worker back. 409 when it is over."""
    message = training_service_pb2.PauseTrainingJobRequest(name=convert.job_name(fine_tuning_job_id))
    return _answer(await _call(gateway, "PauseTrainingJob", message))


@router.post("/{fine_tuning_job_id}/resume")
async def resume_job(fine_tuning_job_id: str, gateway: Gateway) -> Json:
    """Queue a paused job again. 409 unless it is paused."""
    message = training_service_pb2.ResumeTrainingJobRequest(name=convert.job_name(fine_tuning_job_id))
    return _answer(await _call(gateway, "ResumeTrainingJob", message))


@router.get("/{fine_tuning_job_id}/events")
async def list_events(
    fine_tuning_job_id: str,
    request: Request,
    gateway: Gateway,
    after: str | None = None,
    limit: Limit = 20,
    stream: bool = False,
) -> Response:
    """What a job said, newest first.

    With ``stream=true``: server-sent events, oldest first, until the job is over; ``after`` or ``Last-Event-ID`` go on
    behind an event.
    """
    name = convert.job_name(fine_tuning_job_id)
    bare = name.removeprefix("trainingJobs/")
    if stream:
        seen = request.headers.get("last-event-id") or after
        cursor = convert.event_cursor(seen, bare) if seen else ""
        await _get(gateway, fine_tuning_job_id)  # a 404 must come before the stream begins
        return StreamingResponse(_event_stream(gateway, name, bare, cursor), media_type="text/event-stream")
    cursor = convert.event_cursor(after, bare) if after else ""
    events = await _newest_events(gateway, name, cursor, limit + 1)  # one more tells whether there are more
    return Json(page([convert.to_event(event, bare) for event in events[:limit]], len(events) > limit))


async def _newest_events(gateway: GatewayContext, name: str, before: str, count: int) -> list[job_pb2.JobEvent]:
    """Up to ``count`` events before a cursor, newest first; no more than these are read."""
    events: list[job_pb2.JobEvent] = []
    while True:
        message = training_service_pb2.ListTrainingJobEventsRequest(
            name=name, page_size=min(count - len(events), _PAGE), page_token=before, newest_first=True
        )
        response = await _call(gateway, "ListTrainingJobEvents", message)
        events += response.events
        before = response.next_page_token
        if not before or len(events) >= count:
            return events


async def _event_stream(gateway: GatewayContext, name: str, bare: str, cursor: str) -> AsyncIterator[bytes]:
    message = training_service_pb2.WatchTrainingJobRequest(name=name, after_cursor=cursor)
    try:
        async for event in gateway.stages.trainer.watch("training", "WatchTrainingJob", message):
            item = convert.to_event(event, bare)
            yield b"id: %s\ndata: %s\n\n" % (item["id"].encode(), orjson.dumps(item))
    except MartletError as error:
        yield b"data: %s\n\n" % envelope_bytes(error)
        return
    yield b"data: [DONE]\n\n"


@router.get("/{fine_tuning_job_id}/checkpoints")
async def list_checkpoints(
    fine_tuning_job_id: str, gateway: Gateway, after: str | None = None, limit: Limit = 10
) -> Json:
    """The checkpoints that are kept, newest first."""
    name = convert.job_name(fine_tuning_job_id)
    message = training_service_pb2.ListTrainingCheckpointsRequest(name=name, page_size=_PAGE)
    response = await _call(gateway, "ListTrainingCheckpoints", message)
    items = [convert.to_checkpoint(checkpoint, fine_tuning_job_id) for checkpoint in response.checkpoints]
    if after:
        places = [i for i, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidArgument.field("after", f"`{after:.100}` is not the id of a checkpoint of this job.")
        items = items[places[0] + 1 :]
    return Json(page(items[:limit], len(items) > limit))


async def _get(gateway: GatewayContext, openai_id: str) -> training_job_pb2.TrainingJob:
    return await _call(
        gateway, "GetTrainingJob", training_service_pb2.GetTrainingJobRequest(name=convert.job_name(openai_id))
    )


async def _call(gateway: GatewayContext, method: str, message: Any) -> Any:
    """Call the trainer about one job; a job that isn't there is reported under the id the client knows."""
    try:
        return await gateway.stages.trainer.call("training", method, message)
    except NotFound as error:
        raise convert.no_such_job(convert.job_id(message.name)) from error


def _answer(job: training_job_pb2.TrainingJob) -> Json:
    return Json(convert.to_job(job, tenant()))
