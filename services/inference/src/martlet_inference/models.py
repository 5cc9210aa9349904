"""What a replica holds: one whole model in the engine, and adapters on top of it that come and go with the requests.

A request for an adapter that isn't there loads it; to make room the adapter goes that has been unused for longest, is
not pinned and has no request in work. A whole model is never loaded by a request: ``load_whole`` swaps it on an
operator's or the gateway's word.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, MartletError, NotFound, ResourceExhausted, Unavailable

from martlet_inference.engines.base import Engine, EngineState, WholeModel
from martlet_inference.model_source import ModelSource

log = logging.getLogger(__name__)

#: How long a resolved adapter may be served without asking the registry whether its name still stands, in seconds.
RECHECK_SECONDS = 60.0


@dataclass(eq=False)
class Held:
    """A model that this replica holds or is loading.

    Attributes:
        incarnation: the engine's incarnation that it was loaded into; 0 before.
        active: requests that use it or wait for it.
        last_used: monotonic time of the last request, in seconds.
        checked: monotonic time at which the registry last confirmed the name, in seconds.
        loading: the load under way, shared by all who wait for it.
    """

    model: PublishedModel
    pinned: bool = False
    incarnation: int = 0
    active: int = 0
    last_used: float = 0.0
    checked: float = 0.0
    loading: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def adapter(self) -> bool:
        """Whether it is an adapter on top of the whole model."""
        return self.model.kind == "adapter"

    def visible_to(self, tenant: str) -> bool:
        """Whether a tenant may use it."""
        return self.model.tenant in ("", tenant)


class ModelPool:
    """The models of one replica. Belongs to one event loop.

    Args:
        engine: where they are loaded.
        source: where names are resolved and files come from.
        clock: monotonic seconds.
    """

    def __init__(self, engine: Engine, source: ModelSource, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._source = source
        self._clock = clock
        self._whole: Held | None = None
        self._whole_source: WholeModel | None = None
        self._adapters: dict[str, Held] = {}
        self._adapter_lock = (
            asyncio.Lock()
        )  # one adapter operation in the engine at a time: eviction and loading must not cross
        self._swap_lock = asyncio.Lock()
        self._swapping_to = ""
        self._idle = asyncio.Event()
        self._idle.set()
        self._active = 0
        self._listeners: list[Callable[[], None]] = []
        engine.on_change(self._changed)

    @property
    def whole(self) -> Held | None:
        """The whole model in the engine."""
        return self._whole

    @property
    def swapping(self) -> bool:
        """Whether a whole model is giving way to another."""
        return bool(self._swapping_to)

    @property
    def active_requests(self) -> int:
        """Requests in work."""
        return self._active

    def held(self) -> Sequence[Held]:
        """All models held or being loaded, the whole one first, then by name."""
        whole = [self._whole] if self._whole else []
        return [*whole, *(self._adapters[name] for name in sorted(self._adapters))]

    def state(self, held: Held) -> EngineState:
        """What a held model is doing."""
        if self._swapping_to or held.loading is not None:
            return EngineState.STARTING
        if held is not self._whole and held.incarnation != self._engine.incarnation:
            return EngineState.UNHEALTHY  # the engine was started again; the next request loads it
        return self._engine.state

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when a model comes, goes or changes its state."""
        self._listeners.append(listener)

    async def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until no request is in work; False if the time is up first."""
        if not self._idle.is_set():
            try:
                await asyncio.wait_for(self._idle.wait(), timeout_seconds)
            except TimeoutError:
                return False
        return True

    @asynccontextmanager
    async def use(self, name: str, tenant: str) -> AsyncIterator[Held]:
        """The model of a name, ready and protected from eviction while the context lasts.

        Raises:
            NotFound: unknown to the tenant (``MODEL_NOT_FOUND``), or whole and not here (``MODEL_NOT_LOADED``).
            FailedPrecondition: an adapter of another base model (``BASE_MODEL_NOT_LOADED``), or refused by the engine.
            ResourceExhausted: every adapter slot is pinned or in use.
            Unavailable: the engine isn't ready.
        """
        held = await self._find(name, tenant)
        held.active += 1
        held.last_used = self._clock()
        self._active += 1
        self._idle.clear()
        try:
            if held.adapter:
                await self._ensure_loaded(held)
            yield held
        finally:
            held.active -= 1
            self._active -= 1
            if self._active == 0:
                self._idle.set()

    async def load(self, name: str, tenant: str, *, pin: bool, drain_seconds: float) -> Held:
        """Load a model or adapter by name and wait until it answers. Raises as ``use`` does, and as ``load_whole``."""
        whole = self._whole
        if whole is None or whole.model.name != name or not whole.visible_to(tenant):
            if name not in self._adapters:
                model = await self._source.resolve(name, tenant)
                if model.kind != "adapter":
                    return await self.load_whole(model, pin=pin, drain_seconds=drain_seconds)
            async with self.use(name, tenant) as held:
                held.pinned = held.pinned or pin
                self._changed()
                return held
        self._check_ready()
        whole.pinned = whole.pinned or pin
        self._changed()
        return whole

    async def load_whole(
        self, model: PublishedModel, *, pin: bool = False, drain_seconds: float = 0.0, source: WholeModel | None = None
    ) -> Held:
        """Put a whole model into the engine in place of the one that is there, which comes back if the new one fails.

        Args:
            model: the model.
            pin: refuse later swaps.
            drain_seconds: how long running requests may take to end first; those that last longer are cut off.
            source: what the engine is started with; by default the model's files are fetched.

        Raises:
            FailedPrecondition: the present model is pinned, or the engine refuses the new one.
        """
        async with self._swap_lock:
            previous = self._whole
            if previous and previous.model.name == model.name and self._engine.state is EngineState.READY:
                previous.pinned = previous.pinned or pin
                return previous
            if previous and previous.pinned:
                raise FailedPrecondition(
                    f"The model {previous.model.name!r} is pinned; unpin it before you load {model.name!r}.",
                    reason="MODEL_PINNED",
                )
            target = source or await self._start_source(model)
            await self._swap(Held(model, pinned=pin), target, drain_seconds)
            assert self._whole is not None
            return self._whole

    async def unload(self, name: str, tenant: str) -> None:
        """Let go of a model. NotFound if it isn't here, FailedPrecondition while it is pinned or in use."""
        held = self._get(name, tenant)
        if held.pinned:
            raise FailedPrecondition(f"The model {name!r} is pinned; unpin it first.", reason="MODEL_PINNED")
        if held is self._whole:
            async with self._swap_lock:
                self._whole = None
                self._adapters.clear()
                await self._engine.stop()
            self._changed()
            return
        async with self._adapter_lock:
            if held.active:
                raise FailedPrecondition(
                    f"The model {name!r} has {held.active} requests in work; try again when they have ended.",
                    reason="MODEL_IN_USE",
                )
            await self._drop(held)

    def pin(self, name: str, tenant: str, pinned: bool) -> Held:
        """Protect a held model from eviction, or lift that. NotFound if it isn't here."""
        held = self._get(name, tenant)
        held.pinned = pinned
        self._changed()
        return held

    def _get(self, name: str, tenant: str) -> Held:
        held = self._whole if self._whole and self._whole.model.name == name else self._adapters.get(name)
        if held is None or not held.visible_to(tenant):
            raise NotFound(
                f"The model {name!r} is not on this replica.", reason="MODEL_NOT_LOADED", metadata={"model": name}
            )
        return held

    async def _find(self, name: str, tenant: str) -> Held:
        whole = self._whole
        if whole and whole.model.name == name and whole.visible_to(tenant):
            self._check_ready()
            return whole
        held = self._adapters.get(name)
        if held is not None and held.visible_to(tenant) and self._clock() - held.checked < RECHECK_SECONDS:
            self._check_ready()
            return held
        try:
            model = await self._source.resolve(name, tenant)
        except NotFound:
            await self._forget_deleted(name, tenant)
            raise
        self._check_base(model)
        self._check_ready()
        held = self._adapters.setdefault(
            name, Held(model)
        )  # another request may have been faster while the registry was asked
        held.checked = self._clock()
        return held

    async def _forget_deleted(self, name: str, tenant: str) -> None:
        """A name that its owner could use, and that the registry no longer knows, is let go of when nothing uses it."""
        held = self._adapters.get(name)
        if held is None or held.model.tenant not in ("", tenant):
            return
        async with self._adapter_lock:
            if not held.active and self._adapters.get(name) is held:
                await self._drop(held)

    def _check_base(self, model: PublishedModel) -> None:
        loaded = self._whole.model.name if self._whole else ""
        if model.kind != "adapter":
            raise NotFound(
                f"The model {model.name!r} is not loaded on this replica, which serves {loaded or 'nothing'!r}.",
                reason="MODEL_NOT_LOADED",
                metadata={"model": model.name, "loaded": loaded},
            )
        if model.base_model != loaded:
            raise FailedPrecondition(
                f"The adapter {model.name!r} needs its base model {model.base_model!r}; this replica serves "
                f"{loaded or 'nothing'!r}. "
                f"Load {model.base_model!r} on a replica first.",
                reason="BASE_MODEL_NOT_LOADED",
                metadata={"model": model.name, "base_model": model.base_model, "loaded": loaded},
            )
        if model.lora_rank > self._engine.max_lora_rank:
            raise FailedPrecondition(
                f"The adapter {model.name!r} has rank {model.lora_rank}; this replica takes ranks up to "
                f"{self._engine.max_lora_rank} (MARTLET_MAX_LORA_RANK). Merge the adapter into its base model, or "
                "serve it where the maximum is higher.",
                reason="LORA_RANK_TOO_HIGH",
                metadata={"lora_rank": str(model.lora_rank), "max_lora_rank": str(self._engine.max_lora_rank)},
            )

    def _check_ready(self) -> None:
        if self._swapping_to:
            raise Unavailable(
                f"This replica is changing to the model {self._swapping_to!r}; try again.",
                reason="MODEL_SWAPPING",
                retry_after_seconds=5,
            )
        if self._engine.state is not EngineState.READY:
            raise Unavailable(
                f"The engine is {self._engine.state.value}; try again.",
                reason="ENGINE_NOT_READY",
                retry_after_seconds=5,
            )

    async def _ensure_loaded(self, held: Held) -> None:
        if held.incarnation == self._engine.incarnation and held.loading is None:
            return
        if held.loading is None:
            held.loading = asyncio.create_task(self._load_adapter(held))
            self._changed()
        await asyncio.shield(held.loading)  # a client that goes away doesn't take the load from the others

    async def _load_adapter(self, held: Held) -> None:
        name = held.model.name
        try:
            directory = await self._source.files(held.model)
            async with self._adapter_lock:
                await self._make_room(held)
                incarnation = self._engine.incarnation
                started = self._clock()
                await self._engine.load_adapter(name, directory)
                held.incarnation = incarnation
                log.info("adapter loaded", extra={"model": name, "seconds": round(self._clock() - started, 3)})
        except MartletError:
            if self._adapters.get(name) is held and held.incarnation == 0:
                del self._adapters[name]
            raise
        finally:
            held.loading = None
            self._changed()

    async def _make_room(self, for_held: Held) -> None:
        while True:
            loaded = [
                h for h in self._adapters.values() if h is not for_held and h.incarnation == self._engine.incarnation
            ]
            if len(loaded) < self._engine.max_adapters:
                return
            idle = [h for h in loaded if not h.active and not h.pinned]
            if not idle:
                raise ResourceExhausted(
                    f"All {self._engine.max_adapters} adapter slots of this replica are in use or pinned; try again.",
                    reason="NO_ADAPTER_SLOT",
                    retry_after_seconds=1,
                )
            await self._drop(min(idle, key=lambda h: h.last_used))

    async def _drop(self, held: Held) -> None:
        """Let go of an adapter; the caller holds the adapter lock and has seen that no request uses it."""
        self._adapters.pop(held.model.name, None)
        if held.incarnation == self._engine.incarnation:
            await self._engine.unload_adapter(held.model.name)
        log.info("adapter unloaded", extra={"model": held.model.name})
        self._changed()

    async def _start_source(self, model: PublishedModel) -> WholeModel:
        source = model.name
        if self._engine.needs_files and not model.metadata.get("hub_id"):
            source = str(await self._source.files(model))
        hub_id, revision = str(model.metadata.get("hub_id", "")), str(model.metadata.get("revision", ""))
        return WholeModel(model.name, hub_id or source, revision if hub_id else "", model.tenant)

    async def _swap(self, held: Held, target: WholeModel, drain_seconds: float) -> None:
        previous, previous_source = self._whole, self._whole_source
        self._swapping_to = held.model.name
        self._changed()
        try:
            if not await self.wait_idle(drain_seconds):
                log.warning(
                    "requests cut off by a model swap", extra={"requests": self._active, "model": held.model.name}
                )
            if previous:
                await self._engine.stop()
            self._adapters.clear()
            self._whole = held
            try:
                await self._engine.start(target)
                self._whole_source = target
            except MartletError:
                self._whole = None
                if previous and previous_source:
                    log.warning("bringing back the previous model", extra={"model": previous.model.name})
                    await self._engine.start(previous_source)
                    self._whole = previous
                raise
        finally:
            self._swapping_to = ""
            self._changed()

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()
