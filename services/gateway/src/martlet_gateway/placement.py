"""Which replicas can answer for a model, and how a whole model gets onto one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from martlet.inference.v1 import inference_service_pb2
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, MartletError, NotFound, ResourceExhausted, Unavailable

from martlet_gateway.choice import Choice, candidates
from martlet_gateway.replicas import ReplicaRegistry, ReplicaView, Snapshot

log = logging.getLogger(__name__)

NOT_LOADED = "MODEL_NOT_LOADED"
#: Reasons with which a replica says that it gave, or is giving, its engine to another model since it last reported.
MOVED = frozenset({NOT_LOADED, "BASE_MODEL_NOT_LOADED", "MODEL_SWAPPING"})
#: Codes after which another replica may do better.
TRY_ANOTHER = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "NOT_FOUND"})
_PINNED = "MODEL_PINNED"

#: Makes a unary call: replica, method, request, tenant, request id, timeout in seconds.
Call = Callable[[ReplicaView, str, Any, str, str, float], Awaitable[Any]]


def whole_model_of(model: PublishedModel) -> str:
    """Name of the whole model that must be in an engine for the model to answer."""
    return model.base_model if model.kind == "adapter" else model.name


def holders_and_takers(snapshot: Snapshot, model: PublishedModel) -> tuple[list[ReplicaView], list[ReplicaView]]:
    """Replicas that can answer for a model at once, and the others that may be asked to load what it needs."""
    holders = list(candidates(snapshot, model))
    needed = whole_model_of(model)
    others = [view for view in snapshot.replicas.values() if view not in holders]
    return holders, [view for view in others if view.takes_models or view.will_serve(needed)]


class Placement:
    """Gets whole models onto replicas, and waits for those that are on their way.

    Args:
        replicas: who is there.
        choice: orders those that can answer.
        call: makes calls on them.
        timeout_seconds: longest time that a replica may take to load a model.
    """

    def __init__(self, replicas: ReplicaRegistry, choice: Choice, call: Call, timeout_seconds: float) -> None:
        self._replicas = replicas
        self._choice = choice
        self._call = call
        self._timeout_seconds = timeout_seconds
        self._tasks: dict[str, asyncio.Task[ReplicaView]] = {}

    async def wait_for(self, model: PublishedModel, tenant: str, request_id: str, deadline: float) -> ReplicaView:
        """A replica that answers for the model (or its base), after placing it or waiting for an engine that is on its
        way.

        Raises:
            Unavailable: no replica takes it, which is said at once (but for the registry's first seconds, in which
                replicas may yet come); or not in time.
            FailedPrecondition: the adapter's rank is too large, or no replica can ever load the model.
        """
        needed = whole_model_of(model)
        while True:
            found = self._choice.order(self._replicas.snapshot, model)
            if found:
                return found[0]
            replicas = list(self._replicas.snapshot.replicas.values())
            remaining = deadline - time.monotonic()
            holding = self._replicas.snapshot.with_base(needed)
            if holding:  # the base is there, so only the rank can be in the way
                raise _rank_too_large(model, holding)
            coming = any(view.will_serve(needed) for view in replicas)
            if not coming and not any(view.takes_models for view in replicas):
                if (settling := min(remaining, self._replicas.settling_seconds)) > 0:
                    await self._replicas.wait_change(settling)
                    continue
                raise _not_loaded(model, needed, replicas, _why_nobody(replicas), 10.0)
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
            except NotFound as error:
                if model.kind == "whole":
                    raise  # its name was withdrawn meanwhile
                raise _nobody_has(needed, error) from error

    async def _placed(self, name: str, tenant: str, request_id: str) -> None:
        """Place a whole model; all who need the same one wait for one placement, which goes on when they give up."""
        task = self._tasks.get(name)
        if task is None:
            task = asyncio.create_task(self._place(name, tenant, request_id), name=f"place {name}")
            self._tasks[name] = task
            task.add_done_callback(lambda done: self._ended(name, done))
        await asyncio.shield(task)

    def _ended(self, name: str, task: asyncio.Task[ReplicaView]) -> None:
        self._tasks.pop(name, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("placement failed", extra={"model": name, "error": str(error)})

    async def _place(self, name: str, tenant: str, request_id: str) -> ReplicaView:
        last: MartletError | None = None
        takers = [v for v in self._replicas.snapshot.replicas.values() if v.takes_models]
        for view in sorted(takers, key=lambda v: _reluctance(v, name)):
            async with view.placing:
                if view.usable and view.serves(name):  # placed while this one waited
                    return view
                try:
                    request = inference_service_pb2.LoadModelRequest(model=name)
                    served = await self._call(view, "LoadModel", request, tenant, request_id, self._timeout_seconds)
                except MartletError as error:
                    if error.code == "NOT_FOUND":
                        error.metadata.setdefault("param", "model")
                    if error.code not in TRY_ANOTHER and error.reason != _PINNED:
                        raise
                    last = error
                    continue
                self._replicas.note_loaded(view, served)
                return view
        if last is not None:
            raise final(last)
        raise Unavailable("No replica takes models.", reason=NOT_LOADED, retry_after_seconds=10.0)

    async def close(self) -> None:
        """Stop waiting for placements."""
        for task in self._tasks.values():
            task.cancel()


def final(error: MartletError) -> MartletError:
    """The last replica's error as the client gets it: with a time to try again where that can help."""
    if error.reason in MOVED and not isinstance(error, Unavailable):
        return Unavailable(
            f"{error.message} Its replica is changing from model to model; try again.",
            reason=NOT_LOADED,
            metadata={"param": "model"},
            retry_after_seconds=5.0,
        )
    if isinstance(error, (Unavailable, ResourceExhausted)) and error.retry_after_seconds is None:
        error.retry_after_seconds = 1.0
    return error


def _reluctance(view: ReplicaView, name: str) -> tuple[bool, bool, bool, bool, bool, int]:
    """The order in which replicas are asked to take a model: first those without one, then those that have its files."""
    return (view.pinned, view.placing.locked(), view.occupied, name not in view.home, not view.usable, view.load)


def _why_nobody(replicas: Sequence[ReplicaView]) -> str:
    if not replicas:
        return "No replica is registered (MARTLET_GATEWAY_ADDRESS of a replica names the gateway)."
    return "No replica that is registered can take it (MARTLET_ACCEPTS_PLACEMENT=true lets one change its model)."


def _rank_too_large(model: PublishedModel, holding: Sequence[ReplicaView]) -> FailedPrecondition:
    largest = max(v.proto.max_lora_rank for v in holding)
    return FailedPrecondition(
        f"`{model.name}` is an adapter of rank {model.lora_rank}; the replicas that serve its base "
        f"`{model.base_model}` take at most {largest}. Merge it (POST /v1/martlet/merge/jobs), or start a replica with "
        "a larger maximum rank.",
        reason="LORA_RANK_TOO_LARGE",
        metadata={"param": "model"},
    )


def _nobody_has(name: str, error: NotFound) -> FailedPrecondition:
    return FailedPrecondition(
        f"No replica can load the base model `{name}`: it is not published, and no replica was started with it "
        f"(MARTLET_MODEL, MARTLET_MODEL_DIR). A replica said: {error.message}",
        reason="BASE_MODEL_NOT_AVAILABLE",
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
        reason=NOT_LOADED,
        metadata={"param": "model"},
        retry_after_seconds=retry_after_seconds,
    )
