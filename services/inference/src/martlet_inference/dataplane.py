"""The way of a request through a replica: admission, model, engine. OpenAI's shape and ours both take it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from martlet_core.errors import ResourceExhausted, Unavailable
from martlet_core.model_tasks import check_route

from martlet_inference.engines.base import Engine, EngineCall, EngineReply, EngineState
from martlet_inference.models import ModelPool


@dataclass(frozen=True)
class Load:
    """How busy a replica is: requests in work, requests waiting in the engine, share of the KV cache in use (0.0 to
    1.0), and the number of requests beyond which it refuses more."""

    active_requests: int
    waiting_requests: int
    kv_cache_usage: float
    max_requests: int


class DataPlane:
    """Answers requests with the models of a pool.

    Args:
        engine: the engine.
        pool: the models it holds.
        max_requests: requests in work beyond which more are refused.
    """

    def __init__(self, engine: Engine, pool: ModelPool, *, max_requests: int) -> None:
        self.engine = engine
        self.pool = pool
        self.max_requests = max_requests
        self.draining = False

    @property
    def ready(self) -> bool:
        """Whether the engine proved that it can answer and new requests are taken."""
        return self.engine.state is EngineState.READY and not self.draining

    @asynccontextmanager
    async def answer(self, call: EngineCall, *, model: str, tenant: str) -> AsyncIterator[EngineReply]:
        """The engine's answer to a request for ``model``; leaving the context early aborts the generation.

        Raises:
            ResourceExhausted: ``max_requests`` are in work.
            Unavailable: draining, or the engine isn't ready.
            NotFound, FailedPrecondition: see ``ModelPool.use``.
            InvalidArgument: the model doesn't answer on this route (``WRONG_ROUTE``).
        """
        if self.draining:
            raise Unavailable("This replica is shutting down; try another.", reason="DRAINING", retry_after_seconds=1)
        if self.pool.active_requests >= self.max_requests:
            raise ResourceExhausted(
                f"This replica has {self.max_requests} requests in work, its maximum (MARTLET_MAX_REQUESTS); "
                "try again.",
                reason="AT_CAPACITY",
                retry_after_seconds=1,
            )
        async with self.pool.use(model, tenant):
            if use := self.pool.whole.use:
                check_route(model, use.task, call.route.public, use.routes)
            async with self.engine.call(call) as reply:
                yield reply

    async def load(self) -> Load:
        """How busy the replica is."""
        engine = await self.engine.load()
        return Load(self.pool.active_requests, engine.waiting_requests, engine.kv_cache_usage, self.max_requests)
