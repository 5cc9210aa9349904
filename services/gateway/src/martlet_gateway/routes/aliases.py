"""/v1/martlet/aliases: names that may be moved from one model to another, and back."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header

from martlet_gateway import proto_json
from martlet_gateway.aliases import Alias
from martlet_gateway.context import Gateway, Json, tenant
from martlet_gateway.services.aliases import to_proto

router = APIRouter(prefix="/v1/martlet/aliases", tags=["martlet aliases"])


@router.get("")
async def list_aliases(gateway: Gateway) -> Json:
    """The tenant's aliases by name, with what they meant."""
    found = await gateway.names.aliases(tenant())
    return Json({"object": "list", "data": [_to_json(alias) for alias in found]})


@router.get("/{alias}")
async def retrieve(alias: str, gateway: Gateway) -> Json:
    """One alias, with what it meant."""
    return Json(_to_json(await gateway.names.alias(alias, tenant())))


@router.put("/{alias}")
async def put(
    alias: str,
    gateway: Gateway,
    model: Annotated[str, Body(embed=True, min_length=1)],
    if_match: Annotated[str, Header()] = "",
) -> Json:
    """Give the name to a model. With ``If-Match``, only if its ``etag`` is still that; 409 if not."""
    return Json(_to_json(await gateway.names.put_alias(alias, model, tenant(), etag=if_match.strip('"'))))


@router.post("/{alias}/rollback")
async def roll_back(alias: str, gateway: Gateway) -> Json:
    """Give the name back to the model that had it before. 409 if there was none."""
    return Json(_to_json(await gateway.names.roll_back_alias(alias, tenant())))


@router.delete("/{alias}")
async def delete(alias: str, gateway: Gateway) -> Json:
    """Forget an alias; the models stay."""
    await gateway.names.delete_alias(alias, tenant())
    return Json({"id": alias, "object": "alias", "deleted": True})


def _to_json(alias: Alias) -> dict[str, Any]:
    return {"id": alias.name, **proto_json.to_json(to_proto(alias))}
