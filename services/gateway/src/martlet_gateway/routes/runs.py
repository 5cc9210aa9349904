"""/v1/martlet/runs: runs as JSON, field by field as in the protos. A body of YAML is a definition by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from martlet.gateway.v1 import run_pb2, run_service_pb2
from martlet_core.errors import InvalidArgument, MartletError
from martlet_core.job_proto import event_to_proto
from martlet_core.jobs import JobEvent
from starlette.responses import StreamingResponse

from martlet_gateway import idempotency, proto_json
from martlet_gateway.context import Gateway, GatewayContext, Json, tenant
from martlet_gateway.errors import envelope_bytes
from martlet_gateway.routes.files import page
from martlet_gateway.routes.jobs import state_of
from martlet_gateway.runs.convert import RunView, bare_id, inputs_of, run_to_proto

router = APIRouter(prefix="/v1/martlet/runs", tags=["martlet runs"])

Limit = Annotated[int, Query(ge=1, le=1000)]
_ROUTE = "/v1/martlet/runs"
_YAML = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "text/plain")
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "source": {"type": "string", "description": "The definition, as YAML or JSON."},
                        "definition": {"type": "object", "description": "The definition itself, instead of `source`."},
                        "inputs": {"type": "object"},
                        "reuse": {"type": "boolean"},
                        "display_name": {"type": "string"},
                        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                        "request_id": {"type": "string"},
                        "validate_only": {"type": "boolean"},
                    },
                }
            },
            "application/yaml": {"schema": {"type": "string"}},
        },
    }
}


@router.post("", openapi_extra=_BODY)
async def create(request: Request, gateway: Gateway, validate_only: bool = False) -> Json:
    """Submit a run; with ``validate_only`` it is only checked. Mistakes are named with their lines."""
    raw = await request.body()
    message = _create_message(request.headers.get("content-type", ""), raw)
    message.validate_only = message.validate_only or validate_only
    if not message.request_id and not message.validate_only:
        message.request_id = await idempotency.request_id_for(gateway.retries, request.headers, tenant(), _ROUTE, raw)
    spec = message.run.spec
    view = await gateway.runs.create(
        tenant(),
        source=spec.source,
        inputs=inputs_of(spec),
        reuse=spec.reuse if spec.HasField("reuse") else None,
        display_name=message.run.display_name,
        labels=dict(message.run.labels),
        request_id=message.request_id,
        validate_only=message.validate_only,
    )
    return Json(_to_json(view))


@router.get("")
async def list_runs(
    gateway: Gateway, after: str | None = None, limit: Limit = 20, state: Annotated[list[str] | None, Query()] = None
) -> Json:
    """The tenant's runs, newest first; ``state`` may be given several times."""
    views, token = await gateway.runs.list(
        tenant(),
        states=[state_of(s) for s in state or ()],
        page_size=limit,
        page_token=bare_id(after) if after else "",
    )
    return Json(page([_to_json(view) for view in views], bool(token)))


@router.get("/{run_id}")
async def retrieve(run_id: str, gateway: Gateway) -> Json:
    """One run with its steps."""
    return Json(_to_json(await gateway.runs.get(tenant(), bare_id(run_id))))


@router.post("/{run_id}/cancel")
async def cancel(run_id: str, gateway: Gateway) -> Json:
    """Stop a run and the jobs of its steps for good. 409 when it is over."""
    return Json(_to_json(await gateway.runs.cancel(tenant(), bare_id(run_id))))


@router.post("/{run_id}/pause")
async def pause(run_id: str, gateway: Gateway) -> Json:
    """Pause the jobs of its steps, and begin none. 409 when it is over."""
    return Json(_to_json(await gateway.runs.pause(tenant(), bare_id(run_id))))


@router.post("/{run_id}/resume")
async def resume(run_id: str, gateway: Gateway) -> Json:
    """Let a paused run go on, or have a failed one try its failed steps again. 409 otherwise."""
    return Json(_to_json(await gateway.runs.resume(tenant(), bare_id(run_id))))


@router.get("/{run_id}/events")
async def events(run_id: str, gateway: Gateway, after: str = "", limit: Limit = 100) -> Json:
    """Past events behind the cursor ``after``, oldest first."""
    found, token = await gateway.runs.events(tenant(), bare_id(run_id), page_size=limit, page_token=after)
    return Json(page([_event_json(event) for event in found], bool(token)))


@router.get("/{run_id}/watch")
async def watch(run_id: str, request: Request, gateway: Gateway, after: str = "") -> StreamingResponse:
    """Server-sent events, past ones first, until the run is over; ``after`` or ``Last-Event-ID`` go on behind a cursor."""
    await gateway.runs.get(tenant(), bare_id(run_id))  # a 404 must come before the stream begins
    cursor = request.headers.get("last-event-id") or after
    stream = _events(gateway, tenant(), bare_id(run_id), cursor)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-cache"})


def _create_message(content_type: str, raw: bytes) -> run_service_pb2.CreateRunRequest:
    message = run_service_pb2.CreateRunRequest()
    if content_type.partition(";")[0].strip().lower() in _YAML:
        try:
            message.run.spec.source = raw.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgument("The body is not UTF-8.", reason="INVALID_RUN") from error
        return message
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        text = "Send a definition in YAML with `content-type: application/yaml`, or JSON with it in `source`"
        raise InvalidArgument(f"The body is not valid JSON: {error}. {text}.", reason="INVALID_JSON") from error
    if not isinstance(body, dict):
        raise InvalidArgument("The body must be a JSON object.", reason="INVALID_JSON")
    if "definition" in body:
        if "source" in body:
            raise InvalidArgument.field("definition", "give either `definition` or `source`.")
        body["source"] = orjson.dumps(body.pop("definition"), option=orjson.OPT_INDENT_2).decode()
    spec = {name: body.pop(name) for name in ("source", "inputs", "reuse") if name in body}
    outer = {name: body.pop(name) for name in ("request_id", "validate_only") if name in body}
    proto_json.fill(message, outer)
    proto_json.fill(message.run.spec, spec)
    allowed = {name: body.pop(name) for name in ("display_name", "labels") if name in body}
    proto_json.fill(message.run, allowed)
    if body:
        known = ["source", "definition", "inputs", "reuse", "display_name", "labels", "request_id", "validate_only"]
        key = next(iter(body))
        raise InvalidArgument.field(key, f"is not known here.{proto_json.close_hint(key, known)}")
    if not message.run.spec.source:
        raise InvalidArgument.field("source", "is required: the definition, as YAML or JSON.")
    return message


async def _events(gateway: GatewayContext, owner: str, run: str, cursor: str) -> AsyncIterator[bytes]:
    try:
        async for event in gateway.runs.watch(owner, run, after=cursor):
            yield b"id: %s\ndata: %s\n\n" % (event.cursor.encode(), orjson.dumps(_event_json(event)))
    except MartletError as error:
        yield b"data: %s\n\n" % envelope_bytes(error)
        return
    yield b"data: [DONE]\n\n"


def _to_json(view: RunView) -> dict[str, Any]:
    message: run_pb2.Run = run_to_proto(view)
    return {"id": view.run.id, **proto_json.to_json(message)}


def _event_json(event: JobEvent) -> dict[str, Any]:
    return {"id": event.cursor, **proto_json.to_json(event_to_proto(event))}
