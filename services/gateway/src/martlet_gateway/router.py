"""Sends an inference request to a replica: one that has the model, else one that can take the adapter, else one where
the model is placed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message
from martlet.inference.v1 import inference_pb2, inference_service_pb2
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, MartletError, ResourceExhausted, Unavailable
from martlet_core.rpc.client import error_from_rpc
from martlet_core.rpc.context import INTERNAL_TOKEN_KEY, REQUEST_ID_KEY, TENANT_KEY

from martlet_gateway.clients import InferenceChannels
from martlet_gateway.metrics import Metrics
from martlet_gateway.model_names import ModelNames
from martlet_gateway.replicas import ReplicaRegistry, ReplicaView

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Codes after which another replica may do better. NOT_FOUND: the replica swapped its model since it last reported.
_TRY_ANOTHER = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "NOT_FOUND"})
_AVOID_SECONDS = 1.0
_READ_SECONDS = 2.0
_END: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]  # missing in grpc's stubs
_NOT_LOADED = "MODEL_NOT_LOADED"


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
            raise error_from_rpc(error) from error

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
        internal_token: shown on every call.
        placement_timeout_seconds: longest wait for a model to be placed or an engine to come up.
    """

    def __init__(
        self,
        replicas: ReplicaRegistry,
        names: ModelNames,
        channels: InferenceChannels,
        metrics: Metrics,
        *,
        internal_token: str = "",
        placement_timeout_seconds: float = 240.0,
    ) -> None:
        self._replicas = replicas
        self._names = names
        self._channels = channels
        self._metrics = metrics
        self._token = ((INTERNAL_TOKEN_KEY, internal_token),) if internal_token else ()
        self._placement_timeout_seconds = placement_timeout_seconds
        self._placements: dict[str, asyncio.Task[ReplicaView]] = {}

    def metadata(self, tenant: str, request_id: str) -> tuple[tuple[str, str], ...]:
        """Metadata of a call to a replica."""
        return ((TENANT_KEY, tenant), (REQUEST_ID_KEY, request_id), *self._token)

    async def open(
        self,
        method: str,
        request: Message,
        model: str,
        *,
        tenant: str,
        request_id: str,
        wait_seconds: float | None = None,
        timeout_seconds: float | None = None,
    ) -> ReplicaStream:
        """Start a streaming call (``CallOpenAI`` or ``Generate``) on a replica that answers for ``model``.

        Another replica is tried while nothing was received yet and the failure is one that another may not have.

        Args:
            wait_seconds: how long to wait for the model to be placed or loaded; at most the setting, which is the
                default.
            timeout_seconds: deadline of the call itself; None for none.

        Raises:
            NotFound: no such model.
            Unavailable: it isn't loaded and can't be placed now, or every replica failed.
            MartletError: what the replica said.
        """
        metadata = self.metadata(tenant, request_id)

        async def start(view: ReplicaView) -> ReplicaStream:
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

        return await self._on_some(model, tenant, request_id, wait_seconds, start)

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

        async def start(view: ReplicaView) -> inference_pb2.CallOpenAIResponse:
            view.outstanding += 1
            try:
                return await self._channels.stub(view.address).whole(request, metadata=metadata)
            finally:
                view.outstanding -= 1

        return await self._on_some(request.model, tenant, request_id, wait_seconds, start)

    async def _on_some(
        self,
        model: str,
        tenant: str,
        request_id: str,
        wait_seconds: float | None,
        start: Callable[[ReplicaView], Awaitable[T]],
    ) -> T:
        """Start a call on a replica, then on others while the failure is one that another may not have."""
        deadline = self._deadline(wait_seconds)
        known = self._names.cached(model, tenant) or await self._names.resolve(model, tenant)
        tried: set[str] = set()
        last: MartletError | None = None
        while True:
            candidates = [view for view in self._candidates(known) if view.id not in tried]
            if not candidates:
                if last is not None:
                    raise _final(last)
                candidates = [await self._wait_for(known, tenant, request_id, deadline)]
            for view in candidates:
                tried.add(view.id)
                try:
                    return await start(view)
                except grpc.aio.AioRpcError as failure:
                    error: MartletError = error_from_rpc(failure)
                except Unavailable as failure:
                    error = failure
                self._metrics.replica_error(error.code)
                if error.code == "NOT_FOUND":
                    error.metadata.setdefault("param", "model")
                if error.code not in _TRY_ANOTHER:
                    raise error
                if error.code == "UNAVAILABLE":
                    view.avoid_until = time.monotonic() + _AVOID_SECONDS
                log.warning("replica failed", extra={"replica": view.id, "code": error.code, "error": error.message})
                last = error

    async def load(
        self, model: str, *, tenant: str, request_id: str, pin: bool, wait_seconds: float | None
    ) -> inference_pb2.ServedModel:
        """Load a model on a replica on request: an adapter where its base is, a whole model by placement."""
        deadline = self._deadline(wait_seconds)
        known = await self._names.resolve(model, tenant)
        candidates = self._candidates(known)
        view = candidates[0] if candidates else await self._wait_for(known, tenant, request_id, deadline)
        request = inference_service_pb2.LoadModelRequest(model=model, pin=pin)
        return await self._unary(view, "LoadModel", request, tenant, request_id, max(1.0, deadline - time.monotonic()))

    async def on_holders(
        self, method: str, request: Any, *, tenant: str, request_id: str, timeout_seconds: float = 60.0
    ) -> list[Any]:
        """Make a unary call (``UnloadModel``, ``PinModel``) on every replica that holds ``request.model``; an empty
        list if none does.
        """
        await self._names.resolve(request.model, tenant)
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

    def _candidates(self, model: PublishedModel) -> list[ReplicaView]:
        """Replicas that can answer at once, best first: those that hold the model, then those that can take the
        adapter; the least busy first.
        """
        by_model = self._replicas.snapshot.by_model
        holders = by_model.get(model.name, ())
        if model.kind != "adapter":
            if len(holders) == 1:
                return [holders[0]]
            now = time.monotonic()
            return sorted(holders, key=lambda v: (v.avoid_until > now, v.load))
        now = time.monotonic()
        able = [v for v in by_model.get(model.base_model, ()) if v.proto.max_lora_rank >= model.lora_rank]
        others = [v for v in able if v not in holders]
        ordered = sorted(holders, key=lambda v: (v.avoid_until > now, _full(v), v.load))
        ordered += sorted(others, key=lambda v: (v.avoid_until > now, _full(v), v.load))
        if len(ordered) > 1:  # a holder that is full or silent must not keep the request from one that isn't
            ordered.sort(key=lambda v: (v.avoid_until > now, _full(v)))
        return ordered

    async def _unary(
        self, view: ReplicaView, method: str, request: Message, tenant: str, request_id: str, timeout: float
    ) -> Any:
        try:
            stub = self._channels.stub(view.address).service
            return await getattr(stub, method)(request, metadata=self.metadata(tenant, request_id), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def _wait_for(self, model: PublishedModel, tenant: str, request_id: str, deadline: float) -> ReplicaView:
        """A replica that answers for the model (or its base), after placing it or waiting for an engine that is on its
        way.
        """
        needed = model.base_model if model.kind == "adapter" else model.name
        while True:
            candidates = self._candidates(model)
            if candidates:
                return candidates[0]
            replicas = list(self._replicas.snapshot.replicas.values())
            remaining = deadline - time.monotonic()
            holding = [v for v in replicas if needed in v.whole and v.usable]
            if holding:  # the base is there, so only the rank can be in the way
                raise _rank_too_large(model, holding)
            coming = any(
                needed in v.coming or (needed in v.whole and not v.usable) for v in replicas if not v.proto.draining
            )
            takers = [v for v in replicas if v.proto.accepts_placement and not v.proto.draining]
            if not coming and not takers:
                raise _not_loaded(model, needed, replicas, "No replica that is registered can take it.", 10.0)
            if remaining <= 0:
                raise _not_loaded(model, needed, replicas, "It is still being loaded.", 5.0)
            if coming:
                await self._replicas.wait_change(remaining)
                continue
            try:
                async with asyncio.timeout(remaining):
                    await self._placed(needed, tenant, request_id)
            except TimeoutError:
                raise _not_loaded(model, needed, replicas, "It is still being loaded.", 5.0) from None

    async def _placed(self, name: str, tenant: str, request_id: str) -> None:
        """Place a whole model; all who need the same one wait for one placement, which goes on when they give up."""
        task = self._placements.get(name)
        if task is None:
            task = asyncio.create_task(self._place(name, tenant, request_id), name=f"place {name}")
            self._placements[name] = task
            task.add_done_callback(lambda done: self._placement_ended(name, done))
        await asyncio.shield(task)

    def _placement_ended(self, name: str, task: asyncio.Task[ReplicaView]) -> None:
        self._placements.pop(name, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("placement failed", extra={"model": name, "error": str(error)})

    async def _place(self, name: str, tenant: str, request_id: str) -> ReplicaView:
        last: MartletError | None = None
        views = self._replicas.snapshot.replicas.values()
        takers = [v for v in views if v.proto.accepts_placement and not v.proto.draining]
        for view in sorted(takers, key=lambda v: (v.placing.locked(), not v.usable, v.load)):
            async with view.placing:
                if name in view.whole and view.usable:  # placed while this one waited
                    return view
                try:
                    request = inference_service_pb2.LoadModelRequest(model=name)
                    await self._unary(view, "LoadModel", request, tenant, request_id, self._placement_timeout_seconds)
                except MartletError as error:
                    if error.code == "NOT_FOUND":
                        error.metadata.setdefault("param", "model")
                    if error.code not in _TRY_ANOTHER:
                        raise
                    last = error
                    continue
                self._replicas.note_placed(view, name)
                return view
        raise (
            _final(last)
            if last
            else Unavailable("No replica takes models.", reason=_NOT_LOADED, retry_after_seconds=10.0)
        )

    async def close(self) -> None:
        """Stop waiting for placements."""
        for task in self._placements.values():
            task.cancel()


def _full(view: ReplicaView) -> bool:
    limit = view.proto.load.max_requests
    return limit > 0 and view.load >= limit


def _final(error: MartletError) -> MartletError:
    """The last replica's error, with a time to try again where it gave none."""
    if isinstance(error, (Unavailable, ResourceExhausted)) and error.retry_after_seconds is None:
        error.retry_after_seconds = 1.0
    return error


def _rank_too_large(model: PublishedModel, holding: Sequence[ReplicaView]) -> FailedPrecondition:
    largest = max(v.proto.max_lora_rank for v in holding)
    return FailedPrecondition(
        f"`{model.name}` is an adapter of rank {model.lora_rank}; the replicas that serve its base "
        f"`{model.base_model}` take at most {largest}. Merge it (POST /v1/martlet/merge/jobs), or start a replica with "
        "a larger maximum rank.",
        reason="LORA_RANK_TOO_LARGE",
        metadata={"param": "model"},
    )


def _not_loaded(
    model: PublishedModel, needed: str, replicas: Sequence[ReplicaView], why: str, retry_after_seconds: float
) -> Unavailable:
    served = sorted({name for view in replicas if view.usable for name in view.whole})
    subject = f"`{model.name}` needs its base model `{needed}`, which" if needed != model.name else f"`{needed}`"
    loaded = f" Loaded now: {', '.join(f'`{n}`' for n in served)}." if served else " No model is loaded now."
    return Unavailable(
        f"{subject} is not loaded on any replica. {why}{loaded}",
        reason=_NOT_LOADED,
        metadata={"param": "model"},
        retry_after_seconds=retry_after_seconds,
    )
