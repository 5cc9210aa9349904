"""What a replica holds: one whole model in the engine, and adapters on top of it that come and go with the requests.

A request for an adapter that isn't there loads it; to make room the adapter goes that has been unused for longest, is
not pinned and has no request in work. A whole model is never loaded by a request: ``whole_model`` has how it changes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from martlet_core.model_rules import check_plain_lora, serves_base

from martlet_inference.engines.base import Engine, EngineState
from martlet_inference.held import Held
from martlet_inference.model_source import ModelSource
from martlet_inference.whole_model import WholeModelSlot

log = logging.getLogger(__name__)

#: How long a resolved adapter may be served without asking the registry whether its name still stands, in seconds.
RECHECK_SECONDS = 60.0
DEFAULT_DRAIN_SECONDS = 30.0


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
        self._adapters: dict[str, Held] = {}
        # One adapter operation in the engine at a time: an eviction and a load of the same name must not cross.
        self._adapter_lock = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._active = 0
        self._listeners: list[Callable[[], None]] = []
        self.whole = WholeModelSlot(engine, source, wait_idle=self.wait_idle, changed=self._changed)
        engine.on_change(self._changed)
        source.guard(self._artifacts_in_use)

    @property
    def active_requests(self) -> int:
        """Requests in work."""
        return self._active

    def held(self) -> Sequence[Held]:
        """All models held or being loaded, the whole one first, then by name."""
        whole = [self.whole.held] if self.whole.held else []
        return [*whole, *(self._adapters[name] for name in sorted(self._adapters))]

    def state(self, held: Held) -> EngineState:
        """What a held model is doing."""
        if self.whole.swapping or held.loading is not None:
            return EngineState.STARTING
        if held.adapter and held.incarnation != self._engine.incarnation:
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
        """Load a model or adapter and wait until it answers. Raises as ``use`` and ``WholeModelSlot.load`` do."""
        present = self.whole.held
        here = present is not None and present.model.name == name and present.visible_to(tenant)
        if present and here and not await self._is_outdated(present, tenant):
            self.whole.check_ready()
            held = present
        elif name not in self._adapters and (model := await self._source.resolve(name, tenant)).kind != "adapter":
            held = await self.whole.load(model, pin=pin, drain_seconds=drain_seconds)
        else:
            async with self.use(name, tenant) as held:
                pass
        held.pinned = held.pinned or pin
        self._changed()
        return held

    async def unload(self, name: str, tenant: str, *, drain_seconds: float = DEFAULT_DRAIN_SECONDS) -> None:
        """Let go of a model. NotFound if it isn't here; FailedPrecondition while it is pinned, or an adapter in use."""
        held = self._get(name, tenant)
        if held.pinned:
            raise FailedPrecondition(f"The model {name!r} is pinned; unpin it first.", reason="MODEL_PINNED")
        if held is self.whole.held:
            await self.whole.unload(drain_seconds)
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
        held = self.whole.held if self.whole.name == name else self._adapters.get(name)
        if held is None or not held.visible_to(tenant):
            raise NotFound(
                f"The model {name!r} is not on this replica.", reason="MODEL_NOT_LOADED", metadata={"model": name}
            )
        return held

    async def _find(self, name: str, tenant: str) -> Held:
        whole = self.whole.held
        if whole and whole.model.name == name and whole.visible_to(tenant):
            await self._check_meaning(whole, tenant)
            if whole is self.whole.held:
                self.whole.check_ready()
                return whole
        held = self._adapters.get(name)
        if held is not None and held.visible_to(tenant) and serves_base(self.whole.name, held.model.base_model):
            self.whole.check_ready()
            if self._clock() - held.checked < RECHECK_SECONDS:
                return held
        try:
            model = await self._source.resolve(name, tenant)
        except NotFound:
            await self._forget_deleted(name, tenant)
            raise
        self._check_servable(model)
        self.whole.check_ready()
        held = self._adapters.setdefault(name, Held(model))  # another request may have been faster meanwhile
        held.checked = self._clock()
        return held

    async def _check_meaning(self, whole: Held, tenant: str) -> None:
        """Refuse a name that by now means another model than the whole one that is here."""
        if self._clock() - whole.checked < RECHECK_SECONDS:
            return
        whole.checked = self._clock()
        if await self._is_outdated(whole, tenant):
            whole.checked = 0.0
            raise NotFound(
                f"The model {whole.model.name!r} is not loaded here: this replica has what the name meant before.",
                reason="MODEL_NOT_LOADED",
                metadata={"model": whole.model.name},
            )

    async def _is_outdated(self, whole: Held, tenant: str) -> bool:
        """Whether a job's later attempt has given the name to its own model: a model may be published before its job is over.
        While the store is away, and when the name was deleted, what is loaded stays what it is.
        """
        if not whole.model.artifact_id:
            return False
        try:
            return (await self._source.resolve(whole.model.name, tenant)).artifact_id != whole.model.artifact_id
        except (NotFound, Unavailable):
            return False

    async def _forget_deleted(self, name: str, tenant: str) -> None:
        """Let go of a name that the tenant could use and the registry no longer knows, if nothing uses it."""
        held = self._adapters.get(name)
        if held is None or not held.visible_to(tenant):
            return
        async with self._adapter_lock:
            if not held.active and self._adapters.get(name) is held:
                await self._drop(held)

    def _check_servable(self, model: PublishedModel) -> None:
        here = self.whole.name
        serves = f"this replica serves {here!r}" if here else "this replica serves no model"
        if model.kind != "adapter":
            raise NotFound(
                f"The model {model.name!r} is not loaded here; {serves}.",
                reason="MODEL_NOT_LOADED",
                metadata={"model": model.name, "loaded": here},
            )
        check_plain_lora(model, model.metadata)
        if not serves_base(here, model.base_model):
            raise FailedPrecondition(
                f"The adapter {model.name!r} needs its base model {model.base_model!r}; {serves}. "
                f"Load {model.base_model!r} on a replica first.",
                reason="BASE_MODEL_NOT_LOADED",
                metadata={"model": model.name, "base_model": model.base_model, "loaded": here},
            )
        most = self._engine.max_lora_rank
        if model.lora_rank > most:
            taken = (
                f"takes ranks up to {most} (MARTLET_MAX_LORA_RANK)"
                if most
                else "serves its base model without adapters"
            )
            raise FailedPrecondition(
                f"The adapter {model.name!r} has rank {model.lora_rank}; this replica {taken}. Merge the adapter into its "
                "base model, or serve it where the maximum is higher.",
                reason="LORA_RANK_TOO_HIGH",
                metadata={"lora_rank": str(model.lora_rank), "max_lora_rank": str(most)},
            )

    async def _ensure_loaded(self, held: Held) -> None:
        if held.loading is None:
            if held.incarnation == self._engine.incarnation:
                return
            held.loading = asyncio.create_task(self._load_adapter(held), name=f"load {held.model.name}")
            held.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._changed()
        await asyncio.shield(held.loading)  # a client that goes away doesn't take the load from the others

    async def _load_adapter(self, held: Held) -> None:
        name = held.model.name
        try:
            directory = await self._source.files(held.model)
            check_plain_lora(held.model, await asyncio.to_thread(_peft_config, directory))
            async with self._adapter_lock:
                await self._make_room(held)
                incarnation = self._engine.incarnation
                started = self._clock()
                await self._engine.load_adapter(name, directory)
                held.incarnation = incarnation
                log.info("adapter loaded", extra={"model": name, "seconds": round(self._clock() - started, 3)})
        finally:
            if held.incarnation == 0 and self._adapters.get(name) is held:
                del self._adapters[name]
            held.loading = None
            self._changed()

    async def _make_room(self, newcomer: Held) -> None:
        while True:
            now = self._engine.incarnation
            loaded = [held for held in self._adapters.values() if held is not newcomer and held.incarnation == now]
            if len(loaded) < self._engine.max_adapters:
                return
            idle = [held for held in loaded if not held.active and not held.pinned]
            if not idle:
                raise ResourceExhausted(
                    f"All {self._engine.max_adapters} adapter slots of this replica are in use or pinned; try again.",
                    reason="NO_ADAPTER_SLOT",
                    retry_after_seconds=1,
                )
            await self._drop(min(idle, key=lambda held: held.last_used))

    async def _drop(self, held: Held) -> None:
        """Let go of an adapter; the caller holds the adapter lock and has seen that no request uses it."""
        self._adapters.pop(held.model.name, None)
        if held.incarnation == self._engine.incarnation:
            await self._engine.unload_adapter(held.model.name)
        log.info("adapter unloaded", extra={"model": held.model.name})
        self._changed()

    def _forget_orphans(self) -> None:
        """Forget adapters whose base model has left the engine, and they with it."""
        here = self.whole.name
        for name, held in list(self._adapters.items()):
            if not serves_base(here, held.model.base_model) and not held.active:
                del self._adapters[name]

    def _artifacts_in_use(self) -> set[str]:
        now = self._engine.incarnation
        adapters = (held for held in self._adapters.values() if held.active or held.loading or held.incarnation == now)
        return self.whole.artifacts | {held.model.artifact_id for held in adapters}

    def _changed(self) -> None:
        self._forget_orphans()
        for listener in self._listeners:
            listener()


def _peft_config(directory: Path) -> dict[str, Any]:
    """What an adapter says of itself; nothing where the engine will have to say what is wrong with its file."""
    try:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
