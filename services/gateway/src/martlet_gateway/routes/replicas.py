"""/v1/martlet/replicas: who serves what, and loading, unloading and pinning by hand (for operators)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from martlet.gateway.v1 import replica_pb2
from martlet.inference.v1 import inference_service_pb2
from martlet_core.errors import NotFound
from martlet_core.rpc.context import call_context

from martlet_gateway import proto_json
from martlet_gateway.context import OPERATORS_ONLY, Gateway, GatewayContext, Json, tenant
from martlet_gateway.routes.files import page
from martlet_gateway.schemas import ModelBody, PinBody

router = APIRouter(prefix="/v1/martlet/replicas", tags=["martlet replicas"])


@router.get("")
async def list_replicas(gateway: Gateway) -> Json:
    """The replicas whose lease holds; models of other tenants are left out."""
    return Json(page([await _replica(gateway, replica) for replica in gateway.replicas.list()], False))


@router.post("/load", dependencies=[OPERATORS_ONLY])
async def load_model(body: ModelBody, gateway: Gateway) -> Json:
    """Load a model on the replica that suits it best; answers when it can be used."""
    served = await gateway.router.load(
        body.model, tenant=tenant(), request_id=call_context().request_id, pin=body.pin, wait_seconds=None
    )
    return Json(proto_json.to_json(served))


@router.post("/unload", dependencies=[OPERATORS_ONLY])
async def unload_model(body: ModelBody, gateway: Gateway) -> Json:
    """Unload a model from every replica that holds it. 409 while it is pinned."""
    request = inference_service_pb2.UnloadModelRequest(model=body.model)
    count = len(await _on_holders(gateway, "UnloadModel", request))
    return Json({"model": body.model, "replicas": count})


@router.post("/pin", dependencies=[OPERATORS_ONLY])
async def pin_model(body: PinBody, gateway: Gateway) -> Json:
    """Protect a loaded model from eviction, or lift that."""
    request = inference_service_pb2.PinModelRequest(model=body.model, pinned=body.pinned)
    return Json(
        {"model": body.model, "replicas": len(await _on_holders(gateway, "PinModel", request)), "pinned": body.pinned}
    )


async def _on_holders(gateway: GatewayContext, method: str, request: Any) -> list[Any]:
    done = await gateway.router.on_holders(method, request, tenant=tenant(), request_id=call_context().request_id)
    if not done:
        raise NotFound(f"No replica holds `{request.model}`.", reason="MODEL_NOT_LOADED", metadata={"param": "model"})
    return done


async def _replica(gateway: GatewayContext, replica: replica_pb2.Replica) -> dict[str, Any]:
    values = proto_json.to_json(replica)
    allowed = {model.name for model in await gateway.names.list(tenant())}
    values["models"] = [model for model in values["models"] if model["name"] in allowed]
    return {"id": replica.name.removeprefix("replicas/"), "object": "replica", **values}
