"""The transformers engine's server for models that don't generate: vLLM's pooling routes, in batches, one thread computing.

A request's inputs are computed in batches of like length; those of several requests take turns, and one that is given up ends
with its present batch.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from aiohttp import web
from martlet_core.model_tasks import ModelTask
from torch.nn import functional

from martlet_inference.engines.base import Route
from martlet_inference.engines.transformers_http import MAX_BODY_BYTES, error_response, models_response
from martlet_inference.engines.transformers_pooling import PoolingModel, Tokens
from martlet_inference.engines.transformers_pooling_request import Input, PoolingRequest, parse
from martlet_inference.engines.transformers_request import BadRequest

#: Bounds of a batch: inputs, and tokens with their padding.
BATCH_INPUTS = 64
BATCH_TOKENS = 16_384
_ROUTES = (Route.EMBEDDINGS, Route.CLASSIFY, Route.POOLING, Route.SCORE, Route.RERANK)


class PoolingServer:
    """The routes.

    Args:
        model: what answers.
    """

    def __init__(self, model: PoolingModel) -> None:
        self._model = model
        self._thread = ThreadPoolExecutor(1, "model")
        self._requests = 0
        self._tokens_counted = 0

    def app(self) -> web.Application:
        """The web application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        for route in _ROUTES:
            app.router.add_post(route.value, self._answer)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        return models_response(self._model.name, self._model.context_length)

    async def _metrics(self, _: web.Request) -> web.Response:
        lines = [f"martlet:prompt_tokens_total {self._tokens_counted}"]
        lines += [f"martlet:num_requests_waiting {max(0, self._requests - 1)}"]
        return web.Response(text="\n".join(lines) + "\n")

    async def _answer(self, http: web.Request) -> web.Response:
        self._requests += 1
        try:
            request = parse(Route(http.path), await http.read())
            self._model.check(request)
            body = await self._answered(request)
            return web.Response(body=json.dumps(body).encode(), content_type="application/json")
        except BadRequest as exc:
            return error_response(str(exc), param=exc.param, status=exc.status)
        except (RuntimeError, IndexError) as exc:  # torch: out of memory, more positions than there are, and the like
            return error_response(f"{type(exc).__name__}: {exc}", status=500)
        finally:
            self._requests -= 1

    async def _answered(self, request: PoolingRequest) -> dict[str, Any]:
        if request.route in (Route.SCORE, Route.RERANK):
            scores, tokens = await self._scores(request)
            return (
                _reranked(request, scores, tokens)
                if request.route is Route.RERANK
                else _scored(request, scores, tokens)
            )
        values, tokens = await self._values(request, request.inputs)
        if request.route is Route.CLASSIFY:
            kind, data = "classify", [self._classified(value) for value in values]
        elif request.route is Route.EMBEDDINGS:
            kind, data = "embd", [{"object": "embedding", "embedding": _encoded(value, request)} for value in values]
        else:
            kind, data = "pool", [{"object": "pooling", "data": _encoded(value, request)} for value in values]
        return _listed(kind, request.model, data, tokens)

    async def _scores(self, request: PoolingRequest) -> tuple[list[float], int]:
        """A number a pair: the head's, or the cosine of the two texts' vectors."""
        if self._model.task is not ModelTask.EMBEDDING:
            values, tokens = await self._values(request, request.inputs)
            return [float(value[0]) for value in values], tokens
        texts = list(dict.fromkeys(side for pair in request.pairs for side in pair))  # a query is read once
        values, tokens = await self._values(request, texts)
        vectors = dict(zip(texts, values, strict=True))
        pairs = [(vectors[first], vectors[second]) for first, second in request.pairs]
        return [float(functional.cosine_similarity(first, second, dim=0)) for first, second in pairs], tokens

    async def _values(self, request: PoolingRequest, texts: Sequence[Input]) -> tuple[list[torch.Tensor], int]:
        """What the model makes of each text, in their order, and how many tokens they had."""
        loop = asyncio.get_running_loop()
        inputs = await loop.run_in_executor(self._thread, self._model.tokens, request, texts)
        values: list[Any] = [None] * len(inputs)
        for places in batches(inputs, together=self._model.pads):
            batch = [inputs[place] for place in places]
            computed = await loop.run_in_executor(self._thread, self._model.compute, batch, request)
            self._tokens_counted += sum(len(tokens.ids) for tokens in batch)
            for place, value in zip(places, computed, strict=True):
                values[place] = value
        return values, sum(len(tokens.ids) for tokens in inputs)

    def _classified(self, probabilities: torch.Tensor) -> dict[str, Any]:
        label = self._model.labels.get(int(probabilities.argmax()))
        return {"label": label, "probs": probabilities.tolist(), "num_classes": len(probabilities)}


def batches(inputs: Sequence[Tokens], *, together: bool) -> Iterator[list[int]]:
    """Places of inputs of like length; each alone unless they may be computed ``together``."""
    batch: list[int] = []
    for place in sorted(range(len(inputs)), key=lambda place: -len(inputs[place].ids)):
        longest = len(inputs[batch[0] if batch else place].ids)  # the first is the longest
        full = not together or len(batch) >= BATCH_INPUTS or (len(batch) + 1) * longest > BATCH_TOKENS
        if batch and full:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _encoded(value: torch.Tensor, request: PoolingRequest) -> str | list[Any]:
    if request.base64:  # float32, little-endian, as OpenAI's clients read it
        return base64.b64encode(value.numpy().astype("<f4").tobytes()).decode()
    return value.tolist()


def _listed(kind: str, model: str, data: Sequence[dict[str, Any]], tokens: int) -> dict[str, Any]:
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [{"index": index, **item} for index, item in enumerate(data)],
        "usage": _usage(tokens),
    }


def _scored(request: PoolingRequest, scores: Sequence[float], tokens: int) -> dict[str, Any]:
    return _listed("score", request.model, [{"object": "score", "score": score} for score in scores], tokens)


def _reranked(request: PoolingRequest, scores: Sequence[float], tokens: int) -> dict[str, Any]:
    results = []
    for index in sorted(range(len(scores)), key=lambda place: -scores[place])[: request.top_n or None]:
        document = {"document": {"text": request.pairs[index][1]}} if request.return_documents else {}
        results.append({"index": index, **document, "relevance_score": scores[index]})
    return {"id": f"rerank-{uuid.uuid4().hex}", "model": request.model, "usage": _usage(tokens), "results": results}


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
