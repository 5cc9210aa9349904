"""/v1/martlet/lineage: where a model or an artifact comes from, as a tree or as a model card."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from martlet_gateway.context import Gateway, Json, in_thread, tenant
from martlet_gateway.model_card import model_card

router = APIRouter(prefix="/v1/martlet/lineage", tags=["martlet lineage"])


@router.get("/{name:path}")
async def lineage(name: str, gateway: Gateway, form: Literal["tree", "card"] = "tree") -> Response:
    """Of a model, an alias, ``artifacts/<id>`` or ``file-<id>``: data sets by hash, specifications, code, base models,
    metrics. ``form=card`` writes a model card from it.
    """
    node = await in_thread(gateway.lineage.of, name, tenant())
    evaluations = await in_thread(gateway.lineage.evaluations, node.name, tenant())
    if form == "tree":
        return Json({"object": "lineage", **node.to_dict(), "evaluations": evaluations})
    licenses = {known.name: known.license for known in (await gateway.names.base_models()).values()}
    return PlainTextResponse(model_card(node, evaluations, licenses), media_type="text/markdown")
