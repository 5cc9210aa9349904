"""What a model is for, and the inference routes that go with it: the gateway and the replicas must agree on both.

An artifact of a whole model says it in its metadata, under ``task``; a published model says the same. A model that says nothing
is a causal language model. The routes are those of the gateway; ``classify``, ``pooling``, ``score`` and ``rerank`` are vLLM's.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import Any

from martlet_core.errors import FieldViolation, InvalidArgument

CHAT_COMPLETIONS = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
CLASSIFY = "/v1/classify"
POOLING = "/v1/pooling"
SCORE = "/v1/score"
RERANK = "/v1/rerank"


class ModelTask(enum.StrEnum):
    """What a whole model was made for."""

    CAUSAL_LM = "causal_lm"
    SEQUENCE_CLASSIFICATION = "sequence_classification"
    TOKEN_CLASSIFICATION = "token_classification"
    EMBEDDING = "embedding"
    RERANKER = "reranker"
    REWARD = "reward"


#: Routes by task. A sequence classifier answers on score and rerank if it has one label: that number is then the score.
ROUTES: Mapping[ModelTask, tuple[str, ...]] = {
    ModelTask.CAUSAL_LM: (CHAT_COMPLETIONS, COMPLETIONS),
    ModelTask.SEQUENCE_CLASSIFICATION: (CLASSIFY, POOLING, SCORE, RERANK),
    ModelTask.TOKEN_CLASSIFICATION: (POOLING,),
    ModelTask.EMBEDDING: (EMBEDDINGS, POOLING, SCORE, RERANK),
    ModelTask.RERANKER: (RERANK, SCORE, CLASSIFY, POOLING),
    ModelTask.REWARD: (CLASSIFY, POOLING, SCORE, RERANK),
}


def told_task(facts: Mapping[str, Any]) -> ModelTask | None:
    """The task in the metadata of an artifact or a published model; None where it has none, or one that isn't known here."""
    try:
        return ModelTask(str(facts.get("task")))
    except ValueError:
        return None


def check_route(model: str, task: ModelTask, route: str, routes: Collection[str] | None = None) -> None:
    """Refuse a route that a model of this task has no answer for.

    Args:
        model: name of the model.
        task: what it is for.
        route: as in ``ROUTES``.
        routes: those on which it does answer; by default all of its task.

    Raises:
        InvalidArgument: reason ``WRONG_ROUTE``; the message names the routes to use instead.
    """
    known = ROUTES[task] if routes is None else [path for path in ROUTES[task] if path in routes]
    if route in known:
        return
    what = task.value.replace("_", " ")
    message = f"The model {model!r} is for {what}, so it does not answer on {route}; use {' or '.join(known)}."
    raise InvalidArgument(
        message,
        reason="WRONG_ROUTE",
        metadata={"model": model, "task": task.value, "routes": ",".join(known)},
        violations=[FieldViolation("model", message)],
    )
