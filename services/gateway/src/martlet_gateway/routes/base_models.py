"""/v1/martlet/models: models that the tenant gave a name, for jobs to use as ``base_model``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body
from martlet.trainer.v1 import training_service_pb2 as pb

from martlet_gateway import proto_json
from martlet_gateway.context import Gateway, GatewayContext, Json, tenant

router = APIRouter(prefix="/v1/martlet/models", tags=["martlet models"])

_PAGE = 1000


@router.get("")
async def list_registered(gateway: Gateway) -> Json:
    """The models that the tenant registered, by name. ``/v1/models`` lists all that answer."""
    found, token = list[Any](), ""
    while True:
        request = pb.ListBaseModelsRequest(page_size=_PAGE, page_token=token, registered=True)
        response = await _call(gateway, "ListBaseModels", request)
        found += response.base_models
        token = response.next_page_token
        if not token:
            return Json({"object": "list", "data": [_to_json(model) for model in found]})


@router.post("")
async def register(
    gateway: Gateway,
    name: Annotated[str, Body(min_length=1)],
    source: Annotated[str, Body(min_length=1)],
    revision: Annotated[str, Body()] = "",
    chat_template: Annotated[str, Body()] = "",
) -> Json:
    """Give a model a name: ``artifacts/<id>``, ``org/model`` of Hugging Face or ``ms:org/model`` of ModelScope, the latter with a revision."""
    await gateway.names.check_free(name, tenant())
    request = pb.RegisterBaseModelRequest(name=name, source=source, revision=revision, chat_template=chat_template)
    model = await _call(gateway, "RegisterBaseModel", request)
    gateway.names.forget(name)
    return Json(_to_json(model))


@router.get("/{name}")
async def retrieve(name: str, gateway: Gateway) -> Json:
    """One of them."""
    return Json(_to_json(await _call(gateway, "GetBaseModel", pb.GetBaseModelRequest(name=name))))


@router.delete("/{name}")
async def unregister(name: str, gateway: Gateway) -> Json:
    """Forget a name; files, and models that were trained from it, stay. Adapters that were trained on it need the name to be served."""
    await _call(gateway, "UnregisterBaseModel", pb.UnregisterBaseModelRequest(name=name))
    gateway.names.forget(name)
    return Json({"id": name, "object": "model", "deleted": True})


async def _call(gateway: GatewayContext, method: str, request: Any) -> Any:
    return await gateway.stages.trainer.call("training", method, request)


def _to_json(model: pb.BaseModel) -> dict[str, Any]:
    values = proto_json.to_json(model)
    shown = ("name", "source", "chat_template", "create_time")
    return {"id": model.name, "object": "model", **{key: values[key] for key in shown if key in values}}
