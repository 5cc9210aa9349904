"""/v1/martlet/jobs, /v1/martlet/merge/jobs, /v1/martlet/quantization/jobs and /v1/martlet/evaluation/jobs: the stages' own
resources as JSON, field by field as in the protos.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from google.protobuf.message import Message
from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import training_service_pb2
from martlet_core.errors import InvalidArgument, MartletError, NotFound
from martlet_core.jobs import JobState
from starlette.responses import StreamingResponse

from martlet_gateway import idempotency, proto_json
from martlet_gateway.context import Gateway, GatewayContext, Json, tenant
from martlet_gateway.errors import envelope_bytes
from martlet_gateway.job_kinds import JOB_KINDS, TRAINING, JobKind
from martlet_gateway.routes.files import page

Limit = Annotated[int, Query(ge=1, le=1000)]
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "spec": {
                            "type": "object",
                            "description": "The stage's spec (TrainingSpec, MergeSpec, QuantizationSpec, EvaluationSpec), field by field.",
                        },
                        "display_name": {"type": "string"},
                        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                        "request_id": {"type": "string"},
                        "validate_only": {"type": "boolean"},
                    },
                }
            }
        },
    }
}


def job_router(kind: JobKind) -> APIRouter:
    """Routes of one kind of job."""
    router = APIRouter(prefix=f"/v1/martlet/{kind.path}", tags=[f"martlet {kind.path}"])

    @router.post("", openapi_extra=_BODY)
    async def create(request: Request, gateway: Gateway) -> Json:
        """Create a job. ``spec`` is as in the protos; its fields may also stand at the top."""
        raw = await request.body()
        message = _create_message(kind, raw)
        if not message.request_id:
            route = f"/v1/martlet/{kind.path}"
            message.request_id = await idempotency.request_id_for(
                gateway.retries, request.headers, tenant(), route, raw
            )
        return Json(_to_json(await kind.call(gateway.stages, f"Create{kind.noun}", message)))

    @router.get("")
    async def list_jobs(
        gateway: Gateway,
        after: str | None = None,
        limit: Limit = 20,
        state: Annotated[list[str] | None, Query()] = None,
    ) -> Json:
        """The tenant's jobs, newest first; ``state`` may be given several times."""
        token = kind.name(after).split("/")[1] if after else ""
        request = kind.request(
            "List", plural=True, page_size=limit, page_token=token, states=[_state(s) for s in state or ()]
        )
        response = await kind.call(gateway.stages, f"List{kind.noun}s", request)
        jobs = [_to_json(job) for job in getattr(response, kind.jobs)]
        return Json(page(jobs, bool(response.next_page_token)))

    @router.get("/{job_id}")
    async def retrieve(job_id: str, gateway: Gateway) -> Json:
        """One job."""
        return Json(await _verb(gateway, kind, "Get", job_id))

    @router.post("/{job_id}/cancel")
    async def cancel(job_id: str, gateway: Gateway) -> Json:
        """Stop a job for good. 409 when it is over."""
        return Json(await _verb(gateway, kind, "Cancel", job_id))

    @router.get("/{job_id}/watch")
    async def watch(job_id: str, request: Request, gateway: Gateway, after: str = "") -> StreamingResponse:
        """Server-sent events, past ones first, until the job is over; ``after`` or ``Last-Event-ID`` go on behind a
        cursor.
        """
        await _verb(gateway, kind, "Get", job_id)  # a 404 must come before the stream begins
        cursor = request.headers.get("last-event-id") or after
        stream = _events(gateway, kind, kind.name(job_id), cursor)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-cache"})

    if kind.can_pause:
        _add_pause_and_events(router, kind)
    return router


def _add_pause_and_events(router: APIRouter, kind: JobKind) -> None:
    @router.post("/{job_id}/pause")
    async def pause(job_id: str, gateway: Gateway) -> Json:
        """Have a job keep what it can of its work and give its worker back. 409 when it is over."""
        return Json(await _verb(gateway, kind, "Pause", job_id))

    @router.post("/{job_id}/resume")
    async def resume(job_id: str, gateway: Gateway) -> Json:
        """Queue a paused job again. 409 unless it is paused."""
        return Json(await _verb(gateway, kind, "Resume", job_id))

    @router.get("/{job_id}/events")
    async def events(
        job_id: str, gateway: Gateway, after: str = "", limit: Limit = 100, order: Literal["asc", "desc"] = "asc"
    ) -> Json:
        """Past events behind the cursor ``after``, oldest first unless asked otherwise."""
        make_request = getattr(kind.messages, f"List{kind.noun}EventsRequest")
        request = make_request(name=kind.name(job_id), page_size=limit, page_token=after, newest_first=order == "desc")
        response = await _known(kind, job_id, kind.call(gateway.stages, f"List{kind.noun}Events", request))
        return Json(page([_event_json(event) for event in response.events], bool(response.next_page_token)))


def job_routers() -> list[APIRouter]:
    """The routes of every kind of job."""
    return [training_router(), *(job_router(kind) for kind in JOB_KINDS if kind is not TRAINING)]


def training_router() -> APIRouter:
    """Routes of training jobs: those of every job, and those that only training has."""
    router = job_router(TRAINING)

    @router.get("/{job_id}/checkpoints")
    async def checkpoints(job_id: str, gateway: Gateway) -> Json:
        """The checkpoints that are kept, newest first."""
        request = training_service_pb2.ListTrainingCheckpointsRequest(name=TRAINING.name(job_id), page_size=1000)
        response = await _known(TRAINING, job_id, TRAINING.call(gateway.stages, "ListTrainingCheckpoints", request))
        items = [{"id": c.artifact.removeprefix("artifacts/"), **proto_json.to_json(c)} for c in response.checkpoints]
        return Json(page(items, bool(response.next_page_token)))

    return router


def _create_message(kind: JobKind, raw: bytes) -> Any:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"The body is not valid JSON: {error}.", reason="INVALID_JSON") from error
    if not isinstance(body, dict):
        raise InvalidArgument("The body must be a JSON object.", reason="INVALID_JSON")
    message = kind.request("Create")
    fields = kind.spec.DESCRIPTOR.fields_by_name
    spec = {key: body.pop(key) for key in list(body) if key in fields}
    if spec and "spec" in body:
        raise InvalidArgument.field(next(iter(spec)), "give all of the specification in `spec`, or none of it.")
    outer = {key: body.pop(key) for key in ("request_id", "validate_only") if key in body}
    proto_json.fill(message, outer)
    proto_json.fill(getattr(message, kind.field), ({"spec": spec} if spec else {}) | body)
    return message


async def _verb(gateway: GatewayContext, kind: JobKind, verb: str, job_id: str) -> dict[str, Any]:
    request = kind.request(verb, name=kind.name(job_id))
    return _to_json(await _known(kind, job_id, kind.call(gateway.stages, f"{verb}{kind.noun}", request)))


async def _known(kind: JobKind, job_id: str, call: Any) -> Any:
    try:
        return await call
    except NotFound as error:
        raise kind.no_such_job(job_id) from error


async def _events(gateway: GatewayContext, kind: JobKind, name: str, cursor: str) -> AsyncIterator[bytes]:
    request = kind.request("Watch", name=name, after_cursor=cursor)
    try:
        async for event in kind.client(gateway.stages).watch(kind.service, f"Watch{kind.noun}", request):
            yield b"id: %s\ndata: %s\n\n" % (event.cursor.encode(), orjson.dumps(_event_json(event)))
    except MartletError as error:
        yield b"data: %s\n\n" % envelope_bytes(error)
        return
    yield b"data: [DONE]\n\n"


def _to_json(job: Message) -> dict[str, Any]:
    values = proto_json.to_json(job)
    return {"id": values["name"].rpartition("/")[2], **values}


def _event_json(event: job_pb2.JobEvent) -> dict[str, Any]:
    return {"id": event.cursor, **proto_json.to_json(event)}


def state_of(text: str) -> JobState:
    """A state as it is written in a query. InvalidArgument for what is none."""
    return JobState(job_pb2.JobState.Name(_state(text)).removeprefix("JOB_STATE_"))  # type: ignore[arg-type]


def _state(text: str) -> int:
    names = {v.name.removeprefix("JOB_STATE_"): v.number for v in job_pb2.JobState.DESCRIPTOR.values if v.number}
    if text.upper() not in names:
        raise InvalidArgument.field("state", f"`{text:.40}` is not one of: {', '.join(names).lower()}.")
    return names[text.upper()]
