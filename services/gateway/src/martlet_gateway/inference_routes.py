"""The inference routes: their paths at this gateway, and their names in the contract."""

from __future__ import annotations

from typing import Any

from martlet.inference.v1 import inference_pb2 as pb
from martlet_core.artifacts.types import PublishedModel
from martlet_core.model_tasks import (
    CHAT_COMPLETIONS,
    CLASSIFY,
    COMPLETIONS,
    EMBEDDINGS,
    POOLING,
    RERANK,
    SCORE,
    check_route,
    told_task,
)

_PATHS = {
    pb.OPEN_AI_ROUTE_CHAT_COMPLETIONS: CHAT_COMPLETIONS,
    pb.OPEN_AI_ROUTE_COMPLETIONS: COMPLETIONS,
    pb.OPEN_AI_ROUTE_EMBEDDINGS: EMBEDDINGS,
    pb.OPEN_AI_ROUTE_CLASSIFY: CLASSIFY,
    pb.OPEN_AI_ROUTE_POOLING: POOLING,
    pb.OPEN_AI_ROUTE_SCORE: SCORE,
    pb.OPEN_AI_ROUTE_RERANK: RERANK,
}
#: Routes by path. The last ones are where clients of vLLM, Cohere and Jina look.
ROUTES = {path: route for route, path in _PATHS.items()} | {
    "/classify": pb.OPEN_AI_ROUTE_CLASSIFY,
    "/pooling": pb.OPEN_AI_ROUTE_POOLING,
    "/score": pb.OPEN_AI_ROUTE_SCORE,
    "/rerank": pb.OPEN_AI_ROUTE_RERANK,
    "/v2/rerank": pb.OPEN_AI_ROUTE_RERANK,
}


def check_published(model: PublishedModel, request: Any) -> None:
    """Refuse a route that a published model has no answer for, before a replica loads the model for it.

    An adapter is refused elsewhere, with the remedy to merge it; a model that nobody published is known to its replica alone.

    Args:
        model: what the request names.
        request: a ``CallOpenAIRequest`` or ``GenerateRequest``; others are for all models.

    Raises:
        InvalidArgument: see ``martlet_core.model_tasks.check_route``.
    """
    task = told_task(model.metadata)
    if task is None or model.kind == "adapter":
        return
    if isinstance(request, pb.GenerateRequest):
        check_route(model.name, task, COMPLETIONS if request.WhichOneof("input") == "prompt" else CHAT_COMPLETIONS)
    elif isinstance(request, pb.CallOpenAIRequest) and request.route in _PATHS:
        check_route(model.name, task, _PATHS[request.route])
