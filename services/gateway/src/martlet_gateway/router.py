"""Sends an inference request to a replica: one that has the model, else one that can take the adapter, else one where
the model is placed (``placement``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
import orjson
from google.protobuf.message import Message
from martlet.inference.v1 import inference_pb2, inference_service_pb2
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import MartletError, Unavailable
from martlet_core.model_rules import check_plain_lora
from martlet_core.rpc.client import error_from_rpc, said_by_peer
from martlet_core.rpc.context import INTERNAL_TOKEN_KEY, REQUEST_ID_KEY, TENANT_KEY

from martlet_gateway.choice import Choice
from martlet_gateway.clients import InferenceChannels
from martlet_gateway.inference_routes import check_published
from martlet_gateway.metrics import Metrics
from martlet_gateway.model_names import ModelNames
from martlet_gateway.placement import MOVED, TRY_ANOTHER, Placement, final, whole_model_of
from martlet_gateway.prefixes import Prompt
from martlet_gateway.replicas import ReplicaRegistry, ReplicaView

log = logging.getLogger(__name__)

T = TypeVar("T")

_AVOID_SECONDS = 1.0
_READ_SECONDS = 2.0
_END: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]  # missing in grpc's stubs
#: A request whose model is taken away from the same replica more often gives up: others need that replica more.
_MOST_MOVES = 2


class ReplicaStream:
    """A running call on a replica whose first message has arrived. Always ``close`` it."""

    __slots__ = ("_call", "_open", "_view", "first")

    def __init__(self, call: Any, view: ReplicaView, first: Any) -> None:
        self._call = call
        self._view = view
        self._open = True
        self.first = first

    async def rest(self) -> AsyncIterator[Any]:
        """The messages behind the first. Errors come as MartletErrors."""
        call, end = self._call, _END
        try:
            while (message := await call.read()) is not end:
                yield message
        except grpc.aio.AioRpcError as error:
            # A deadline that passes has no words of the replica's either, and must stay one.
            cut_off = error.code() is grpc.StatusCode.UNAVAILABLE and not said_by_peer(error)
            raise (_cut_off() if cut_off else error_from_rpc(error)) from error

    def close(self) -> None:
        """End the call if it still runs: the replica then aborts the generation."""
        if self._open:
            self._open = False
            self._view.outstanding -= 1
            self._call.cancel()


class Router:
    """Chooses replicas and makes calls on them.

    Args:
        replicas: who is there.
        names: what names mean.
        channels: connections to replicas.
        metrics: counts failed calls.
        choice: orders the replicas that can answer.
        internal_token: shown on every call.
        placement_timeout_seconds: longest wait for a model to be placed or an engine to come up.
    """

    def __init__(
        self,
        replicas: ReplicaRegistry,
        names: ModelNames,
        channels: InferenceChannels,
        metrics: Metrics,
        choice: Choice,
        *,
        internal_token: str = "",
        placement_timeout_seconds: float = 240.0,
    ) -> None:
        self._replicas = replicas
        self._names = names
        self._channels = channels
        self._metrics = metrics
        self._choice = choice
        self._token = ((INTERNAL_TOKEN_KEY, internal_token),) if internal_token else ()
        self._placement_timeout_seconds = placement_timeout_seconds
        self._placement = Placement(replicas, choice, self._unary, placement_timeout_seconds)

    def metadata(self, tenant: str, request_id: str) -> tuple[tuple[str, str], ...]:
        """Metadata of a call to a replica."""
        return ((TENANT_KEY, tenant), (REQUEST_ID_KEY, request_id), *self._token)

    async def open(
        self,
        method: str,
        request: Any,
        *,
        tenant: str,
        request_id: str,
        wait_seconds: float | None = None,
        timeout_seconds: float | None = None,
    ) -> ReplicaStream:
        """Start a streaming call (``CallOpenAI`` or ``Generate``) on a replica that answers for ``request.model``.

        Another replica is tried while nothing was received yet and the failure is one that another may not have.

        Args:
            wait_seconds: how long to wait for the model to be placed or loaded; at most the setting, which is the
                default.
            timeout_seconds: deadline of the call itself; None for none.

        Raises:
            NotFound: no such model.
            Unavailable: it isn't loaded and can't be placed now, or every replica failed.
            FailedPrecondition: an adapter that must be merged first, or that no replica takes.
            MartletError: what the replica said.
        """
        metadata = self.metadata(tenant, request_id)
        known, request = await self._resolved(request, tenant)

        async def start(view: ReplicaView, _: float) -> ReplicaStream:
            call = getattr(self._channels.stub(view.address).service, method)(
                request, metadata=metadata, timeout=timeout_seconds
            )
            view.outstanding += 1
            try:
                first = await call.read()
                if first is _END:
                    raise Unavailable(f"The replica at {view.address} answered nothing.", retry_after_seconds=1.0)
            except BaseException:
                view.outstanding -= 1
                call.cancel()
                raise
            return ReplicaStream(call, view, first)

        return await self._on_some(known, tenant, request_id, wait_seconds, start, Prompt(request))

    async def whole(
        self,
        request: inference_pb2.CallOpenAIRequest,
        *,
        tenant: str,
        request_id: str,
        wait_seconds: float | None = None,
    ) -> inference_pb2.CallOpenAIResponse:
        """Make a call that isn't streamed and return its one message; otherwise as ``open``."""
        metadata = self.metadata(tenant, request_id)
        known, request = await self._resolved(request, tenant)

        async def start(view: ReplicaView, _: float) -> inference_pb2.CallOpenAIResponse:
            view.outstanding += 1
            try:
                return await self._channels.stub(view.address).whole(request, metadata=metadata)
            finally:
                view.outstanding -= 1

        return await self._on_some(known, tenant, request_id, wait_seconds, start, Prompt(request))

    async def _resolved(self, request: Any, tenant: str) -> tuple[PublishedModel, Any]:
        """The model that a request names, and the request naming it: where it named an alias, the model's own name.
        InvalidArgument for a route that the model has no answer for.
        """
        model: str = request.model
        known = self._names.cached(model, tenant) or await self._names.resolve(model, tenant)
        check_published(known, request)
        return known, request if known.name == model else _renamed(request, known.name)

    async def _on_some(
        self,
        known: PublishedModel,
        tenant: str,
        request_id: str,
        wait_seconds: float | None,
        start: Callable[[ReplicaView, float], Awaitable[T]],
        prompt: Prompt | None = None,
    ) -> T:
        """Start a call on a replica, then on others while the failure is one that another may not have.

        ``start`` is given the replica and the moment (``time.monotonic()``) until which the caller waits.
        """
        deadline = self._deadline(wait_seconds)
        if known.kind == "adapter":
            check_plain_lora(known, known.metadata)
        tried: set[str] = set()
        moves: Counter[str] = Counter()
        last: MartletError | None = None
        while True:
            ordered = self._choice.order(self._replicas.snapshot, known, prompt)
            found = [view for view in ordered if view.id not in tried]
            if not found:
                if last is not None and last.reason not in MOVED:
                    raise final(last)
                found = [await self._placement.wait_for(known, tenant, request_id, deadline)]
            for view in found:
                tried.add(view.id)
                if prompt is not None and len(ordered) > 1:
                    self._choice.note(view, prompt)
                try:
                    return await start(view, deadline)
                except grpc.aio.AioRpcError as failure:
                    error = error_from_rpc(failure)
                except MartletError as failure:
                    error = failure
                self._failed(view, error)
                if error.reason in MOVED and moves[view.id] < _MOST_MOVES:
                    # What is known of it is out of date: its model is placed again, or awaited.
                    moves[view.id] += 1
                    tried.discard(view.id)
                    self._replicas.note_gone(view, whole_model_of(known))
                elif error.reason in MOVED:
                    raise final(error)
                elif error.code not in TRY_ANOTHER:
                    raise error
                last = error

    def _failed(self, view: ReplicaView, error: MartletError) -> None:
        self._metrics.replica_error(error.code)
        if error.code == "NOT_FOUND":
            error.metadata.setdefault("param", "model")
        if error.code == "UNAVAILABLE" and error.reason not in MOVED:
            view.avoid_until = time.monotonic() + _AVOID_SECONDS
        log.warning("replica failed", extra={"replica": view.id, "code": error.code, "error": error.message})

    async def load(
        self, model: str, *, tenant: str, request_id: str, pin: bool, wait_seconds: float | None
    ) -> inference_pb2.ServedModel:
        """Load a model on a replica on request: an adapter where its base is, a whole model by placement."""
        known, request = await self._resolved(inference_service_pb2.LoadModelRequest(model=model, pin=pin), tenant)

        async def start(view: ReplicaView, deadline: float) -> inference_pb2.ServedModel:
            timeout = max(1.0, deadline - time.monotonic())
            served = await self._unary(view, "LoadModel", request, tenant, request_id, timeout)
            self._replicas.note_loaded(view, served)
            return served

        return await self._on_some(known, tenant, request_id, wait_seconds, start)

    async def on_holders(
        self, method: str, request: Any, *, tenant: str, request_id: str, timeout_seconds: float = 60.0
    ) -> list[Any]:
        """Make a unary call (``UnloadModel``, ``PinModel``) on every replica that holds ``request.model``; an empty
        list if none does.
        """
        _, request = await self._resolved(request, tenant)
        holders = [
            v
            for v in self._replicas.snapshot.replicas.values()
            if request.model in v.whole or request.model in v.adapters
        ]
        return [await self._unary(v, method, request, tenant, request_id, timeout_seconds) for v in holders]

    async def from_all(self, method: str, request: Message, *, tenant: str, request_id: str) -> list[Any]:
        """Answers of all replicas to a unary call that only reads; those that don't answer at once are left out."""
        views = self._replicas.snapshot.replicas.values()
        calls = [self._unary(view, method, request, tenant, request_id, _READ_SECONDS) for view in views]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        unexpected = [a for a in answers if isinstance(a, BaseException) and not isinstance(a, MartletError)]
        if unexpected:
            raise unexpected[0]
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def _deadline(self, wait_seconds: float | None) -> float:
        longest = self._placement_timeout_seconds
        return time.monotonic() + (longest if wait_seconds is None else min(wait_seconds, longest))

    async def _unary(
        self, view: ReplicaView, method: str, request: Message, tenant: str, request_id: str, timeout: float
    ) -> Any:
        try:
            stub = self._channels.stub(view.address).service
            return await getattr(stub, method)(request, metadata=self.metadata(tenant, request_id), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def close(self) -> None:
        """Stop waiting for placements."""
        await self._placement.close()


def _cut_off() -> MartletError:
    return Unavailable(
        "The replica went away in the middle of its answer; what was sent is incomplete.", reason="REPLICA_FAILED"
    )


def _renamed(request: Any, model: str) -> Any:
    """A copy of a request that names another model, in its body as well."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.model = model
    if body := getattr(request, "body", b""):
        try:
            copy.body = orjson.dumps({**orjson.loads(body), "model": model})
        except (orjson.JSONDecodeError, TypeError):
            return copy  # the replica says what is wrong with it
    return copy
