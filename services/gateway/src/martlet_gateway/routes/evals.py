"""/v1/evals: OpenAI's Evals API on top of evaluator.v1. A run is one evaluation job of the suite ``graders``."""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from martlet_core.errors import FailedPrecondition, NotFound
from martlet_core.ids import new_id
from pydantic import ValidationError
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import StreamingResponse

from martlet_gateway import eval_objects, eval_runs, idempotency
from martlet_gateway.context import Gateway, GatewayContext, Json, in_thread, tenant
from martlet_gateway.errors import from_validation_error
from martlet_gateway.eval_records import places
from martlet_gateway.eval_request import check_eval, read_config, strict_json
from martlet_gateway.eval_store import StoredEval, StoredRun
from martlet_gateway.routes.files import page
from martlet_gateway.schemas import Body, CreateEval, CreateEvalRun, UpdateEval

router = APIRouter(prefix="/v1/evals", tags=["evals"])

Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]
Status = Literal["queued", "in_progress", "completed", "canceled", "failed"]
B = TypeVar("B", bound=Body)

#: The report is a page of its own: it may show itself, and reach nothing else.
_REPORT_HEADERS = {
    "content-security-policy": "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data:",
    "x-content-type-options": "nosniff",
}


def _body(model: type[Body]) -> dict[str, Any]:
    """What the OpenAPI page says of a body that the route reads itself."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post("", status_code=201, openapi_extra=_body(CreateEval))
async def create_eval(request: Request, gateway: Gateway) -> Json:
    """Define an eval. A retry by the stock client, or with the same ``Idempotency-Key``, returns the eval made first."""
    raw = await request.body()
    body = _read(CreateEval, raw)
    assert gateway.stages.evaluator.channel is not None  # raises where the deployment has none
    item_schema, has_sample = read_config(body.data_source_config)
    check_eval(body.testing_criteria, item_schema, has_sample)
    key = await _new_key(gateway, request, raw)
    made = StoredEval(
        key=key,
        name=body.name or f"eval_{key}",
        item_schema=item_schema,
        has_sample=has_sample,
        testing_criteria=body.testing_criteria,
        created_at=int(time.time()),
        updated_at=time.time(),
        body_digest=idempotency.digest(raw),
        metadata=body.metadata or {},
    )
    return Json((await in_thread(gateway.evals.create, tenant(), made)).to_openai(), status_code=201)


async def _new_key(gateway: GatewayContext, request: Request, raw: bytes) -> str:
    """A new id, or that of the first attempt of this request."""
    request_id = await idempotency.request_id_for(gateway.retries, request.headers, tenant(), "/v1/evals", raw)
    if request_id.startswith("rest-"):
        return request_id.removeprefix("rest-")
    known = await gateway.retries.get(request_id)
    if known is None:
        known = new_id()
        await gateway.retries.put(request_id, known)
    return known


@router.get("")
async def list_evals(
    gateway: Gateway,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    order_by: Literal["created_at", "updated_at"] = "created_at",
) -> Json:
    """The tenant's evals, oldest first unless asked otherwise."""
    found, more = await in_thread(
        gateway.evals.list,
        tenant(),
        after=after,
        limit=limit,
        descending=order == "desc",
        by_update=order_by == "updated_at",
    )
    return Json(page([stored.to_openai() for stored in found], more))


@router.get("/{eval_id}")
async def retrieve_eval(eval_id: str, gateway: Gateway) -> Json:
    """One eval."""
    return Json((await _eval(gateway, eval_id)).to_openai())


@router.post("/{eval_id}", openapi_extra=_body(UpdateEval))
async def update_eval(eval_id: str, request: Request, gateway: Gateway) -> Json:
    """Change an eval's name or metadata. ``metadata`` takes the place of what was there."""
    body = _read(UpdateEval, await request.body())
    changes: dict[str, Any] = {}
    if body.name is not None:
        changes["name"] = body.name
    if "metadata" in body.model_fields_set:
        changes["metadata"] = body.metadata or {}
    return Json((await in_thread(gateway.evals.update, tenant(), eval_id, changes)).to_openai())


@router.delete("/{eval_id}")
async def delete_eval(eval_id: str, gateway: Gateway) -> Json:
    """Delete an eval with its runs. 409 while one of them isn't over."""
    stored = await _eval(gateway, eval_id)
    ids = await in_thread(gateway.evals.run_ids, tenant(), stored, after=None, descending=False)
    await eval_runs.delete(gateway, [await _run(gateway, eval_id, run_id) for run_id in ids])
    await in_thread(gateway.evals.delete, tenant(), stored)
    return Json({"object": "eval.deleted", "deleted": True, "eval_id": stored.id})


@router.post("/{eval_id}/runs", status_code=201, openapi_extra=_body(CreateEvalRun))
async def create_run(eval_id: str, request: Request, gateway: Gateway) -> Json:
    """Start a run: one evaluation job. Retries as for evals."""
    raw = await request.body()
    body = _read(CreateEvalRun, raw)
    stored = await _eval(gateway, eval_id)
    route = f"/v1/evals/{stored.id}/runs"
    request_id = await idempotency.request_id_for(gateway.retries, request.headers, tenant(), route, raw)
    run = await eval_runs.submit(gateway, stored, body, request_id)
    return Json(await _show(request, gateway, run), status_code=201)


@router.get("/{eval_id}/runs")
async def list_runs(
    eval_id: str,
    request: Request,
    gateway: Gateway,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: Status | None = None,
) -> Json:
    """An eval's runs, oldest first unless asked otherwise."""
    stored = await _eval(gateway, eval_id)
    ids = iter(await in_thread(gateway.evals.run_ids, tenant(), stored, after=after, descending=order == "desc"))
    found: list[dict[str, Any]] = []
    while len(found) <= limit and (batch := list(islice(ids, limit + 1))):
        shown = await asyncio.gather(*(_show_if_there(request, gateway, eval_id, run_id) for run_id in batch))
        found += [run for run in shown if run is not None and status in (None, run["status"])]
    return Json(page(found[:limit], len(found) > limit))


@router.get("/{eval_id}/runs/{run_id}")
async def retrieve_run(eval_id: str, run_id: str, request: Request, gateway: Gateway) -> Json:
    """One run."""
    return Json(await _show(request, gateway, await _run(gateway, eval_id, run_id)))


@router.post("/{eval_id}/runs/{run_id}", name="cancel_run_as_specified")
@router.post("/{eval_id}/runs/{run_id}/cancel")
async def cancel_run(eval_id: str, run_id: str, request: Request, gateway: Gateway) -> Json:
    """Stop a run for good. 409 when it is over. OpenAI's specification posts to the run, its client to ``/cancel``."""
    run = await _run(gateway, eval_id, run_id)
    await eval_runs.cancel(gateway, run)
    return Json(await _show(request, gateway, run))


@router.delete("/{eval_id}/runs/{run_id}")
async def delete_run(eval_id: str, run_id: str, gateway: Gateway) -> Json:
    """Delete a run; its evaluation job and report stay. 409 while it isn't over."""
    run = await _run(gateway, eval_id, run_id)
    await eval_runs.delete(gateway, [run])
    return Json({"object": "eval.run.deleted", "deleted": True, "run_id": run.id})


@router.get("/{eval_id}/runs/{run_id}/report", name="eval_report")
async def run_report(eval_id: str, run_id: str, gateway: Gateway) -> StreamingResponse:
    """The report of a run as HTML. 409 until it is completed."""
    run = await _run(gateway, eval_id, run_id)
    came = await eval_runs.came_of(gateway, run)
    name = came["martlet"]["result"].get("report_artifact", "")
    if came["status"] != "completed" or not name:
        raise FailedPrecondition(f"{run.id} is {came['status']}; there is a report once it is completed.")
    store = gateway.stores.artifacts
    artifact = await in_thread(store.get, name.removeprefix("artifacts/"), tenant=tenant())
    pages = [file.path for file in artifact.files if file.path.endswith(".html")]
    if not pages:
        raise NotFound(f"{name} has no page.", reason="ARTIFACT_FILE_NOT_FOUND")
    chunks = await in_thread(store.open_file, artifact, pages[0])
    return StreamingResponse(
        iterate_in_threadpool(chunks), media_type="text/html; charset=utf-8", headers=_REPORT_HEADERS
    )


@router.get("/{eval_id}/runs/{run_id}/output_items")
async def list_items(
    eval_id: str,
    run_id: str,
    gateway: Gateway,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: Literal["pass", "fail", "error"] | None = None,
) -> Json:
    """What came of each row, in the rows' order; none until the run is completed."""
    run = await _run(gateway, eval_id, run_id)
    behind = eval_objects.item_place(run, after, "after") if after else None
    came = await eval_runs.came_of(gateway, run)
    rows = await in_thread(gateway.evals.rows, tenant(), run)
    if rows is None:
        return Json(page([], False))
    chosen = places(rows, after=behind, status=status, descending=order == "desc")
    wanted = list(islice(chosen, limit + 1))
    items = await _items(gateway, run, came, rows, wanted[:limit])
    return Json(page(items, len(wanted) > limit))


@router.get("/{eval_id}/runs/{run_id}/output_items/{output_item_id}")
async def retrieve_item(eval_id: str, run_id: str, output_item_id: str, gateway: Gateway) -> Json:
    """What came of one row."""
    run = await _run(gateway, eval_id, run_id)
    place = eval_objects.item_place(run, output_item_id, "output_item_id")
    came = await eval_runs.came_of(gateway, run)
    rows = await in_thread(gateway.evals.rows, tenant(), run)
    if rows is None or place >= len(rows["statuses"]):
        raise eval_objects.no_such_item(output_item_id)
    return Json((await _items(gateway, run, came, rows, [place]))[0])


async def _items(
    gateway: GatewayContext, run: StoredRun, came: dict[str, Any], rows: dict[str, Any], wanted: list[int]
) -> list[dict[str, Any]]:
    ascending = sorted(wanted)
    records = await eval_runs.records_of(gateway, came).read(rows, ascending)
    by_place = dict(zip(ascending, records, strict=True))
    return [eval_objects.to_item(by_place[place], place, run) for place in wanted]


async def _eval(gateway: GatewayContext, eval_id: str) -> StoredEval:
    return await in_thread(gateway.evals.get, tenant(), eval_id)


async def _run(gateway: GatewayContext, eval_id: str, run_id: str) -> StoredRun:
    return await in_thread(gateway.evals.run, tenant(), eval_id, run_id)


async def _show(request: Request, gateway: GatewayContext, run: StoredRun) -> dict[str, Any]:
    came = await eval_runs.came_of(gateway, run)
    url = request.url_for("eval_report", eval_id=run.eval_id, run_id=run.id)
    return eval_objects.to_run(run, came, str(url))


async def _show_if_there(request: Request, gateway: GatewayContext, eval_id: str, run_id: str) -> dict[str, Any] | None:
    try:
        return await _show(request, gateway, await _run(gateway, eval_id, run_id))
    except NotFound:
        return None  # it went between the listing and this look


def _read(model: type[B], raw: bytes) -> B:
    """A body. InvalidArgument names the field at fault."""
    values = strict_json(raw)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise from_validation_error(RequestValidationError(error.errors())) from error
