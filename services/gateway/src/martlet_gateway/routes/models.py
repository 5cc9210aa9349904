"""/v1/models: names that answer, for the tenant that asks."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from martlet.inference.v1 import inference_pb2
from martlet_core.artifacts.types import PublishedModel
from martlet_core.model_rules import serves_base
from martlet_core.model_tasks import told_task

from martlet_gateway.context import Gateway, GatewayContext, Json, tenant
from martlet_gateway.placement import holders_and_takers, whole_model_of
from martlet_gateway.replicas import Snapshot

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(gateway: Gateway) -> Json:
    """Published models of the tenant, newest first, then base models."""
    models = await gateway.names.list(tenant())
    return Json({"object": "list", "data": [await _model(gateway, model) for model in models]})


@router.get("/{model:path}")
async def retrieve_model(model: str, gateway: Gateway) -> Json:
    """One model. Names may contain slashes, as ``/`` or ``%2F``."""
    return Json(await _model(gateway, await gateway.names.resolve(model, tenant())))


@router.delete("/{model:path}")
async def delete_model(model: str, gateway: Gateway) -> Json:
    """Forget a published model's name; its artifact stays until it is deleted itself."""
    await gateway.names.delete(model, tenant())
    return Json({"id": model, "object": "model", "deleted": True})


def _task(model: PublishedModel, snapshot: Snapshot) -> str | None:
    """What it was made for, and so which routes it answers on: as it was published, else as a replica found in the files; None
    while neither is known.
    """
    if told := told_task(model.metadata):
        return told.value
    whole = whole_model_of(model)
    for view in snapshot.with_base(whole):
        for served in view.proto.models:
            if serves_base(served.name, whole) and served.task:
                return inference_pb2.ModelTask.Name(served.task).removeprefix("MODEL_TASK_").lower()
    return None


async def _model(gateway: GatewayContext, model: PublishedModel) -> dict[str, Any]:
    known = (await gateway.names.base_models()).get(model.name)
    snapshot = gateway.replicas.snapshot
    holders = snapshot.by_model.get(model.name, ())
    base_holders = snapshot.by_model.get(model.base_model, ()) if model.base_model else ()
    able, takers = holders_and_takers(snapshot, model)
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.create_time),
        "owned_by": model.tenant or "martlet",
        "martlet": {
            "kind": model.kind,
            "task": _task(model, snapshot),
            "alias_of": model.metadata.get("alias_of"),
            "base_model": model.base_model or None,
            "artifact": f"artifacts/{model.artifact_id}" if model.artifact_id else None,
            "lora_rank": model.lora_rank or None,
            "source_job": model.source_job or None,
            "source": known.source if known else None,
            "parameter_count": known.parameter_count if known else None,
            "context_length": known.context_length if known else None,
            "license": known.license if known else None,
            "loaded": bool(holders),
            "answers_now": bool(holders or base_holders),
            "replicas": [
                {"name": view.proto.name, "engine": view.proto.engine, "loaded": view in holders}
                for view in (*able, *takers)
            ],
        },
    }
