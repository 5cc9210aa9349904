"""The whole model in a replica's engine: how it gets there, gives way to another, and leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, MartletError, Unavailable

from martlet_inference.engines.base import Engine, EngineState, WholeModel
from martlet_inference.gpu_gate import GpuGate
from martlet_inference.held import Held
from martlet_inference.model_source import ModelSource
from martlet_inference.model_use import ModelUse, use_of

log = logging.getLogger(__name__)


class WholeModelSlot:
    """The one place for a whole model. Belongs to one event loop.

    Args:
        engine: where it is loaded.
        source: where files come from.
        wait_idle: waits until no request is in work, at most so many seconds.
        changed: called when the model or its state changes.

    Attributes:
        gpus: what the engine must wait for before it starts; None where no GPUs are leased.
    """

    def __init__(
        self,
        engine: Engine,
        source: ModelSource,
        *,
        wait_idle: Callable[[float], Awaitable[bool]],
        changed: Callable[[], None],
    ) -> None:
        self.held: Held | None = None
        self._engine = engine
        self._source = source
        self._wait_idle = wait_idle
        self._changed = changed
        self._started_with: WholeModel | None = None
        self._changing: tuple[PublishedModel, ...] = ()
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Held]] = set()
        self._leaving = ""
        self.gpus: GpuGate | None = None

    @property
    def waits_for(self) -> str:
        """What keeps the engine from starting, for people; empty for nothing."""
        return self.gpus.reason if self.gpus is not None else ""

    @property
    def swapping(self) -> bool:
        """Whether the model is giving way to another or leaving: new requests are refused."""
        return bool(self._leaving)

    @property
    def name(self) -> str:
        """Name of the model; empty while there is none."""
        return self.held.model.name if self.held else ""

    @property
    def use(self) -> ModelUse | None:
        """What the model in the engine is for; None while none was started."""
        return self._started_with.use if self._started_with else None

    @property
    def artifacts(self) -> set[str]:
        """Artifacts whose files are needed: that of the model, and during a change those of the one before and after."""
        models = self._changing + ((self.held.model,) if self.held else ())
        return {model.artifact_id for model in models if model.artifact_id}

    def announce(self, model: PublishedModel) -> None:
        """Say which model is to come, so that requests for it hear "not yet" and not "no such model"."""
        if self.held is None:
            self.held = Held(model)
            self._changed()

    def check_ready(self) -> None:
        """Raises Unavailable unless requests can be answered now."""
        if self.waits_for:
            raise Unavailable(
                f"This replica is {self.waits_for}; try again.", reason="ENGINE_NOT_READY", retry_after_seconds=5
            )
        if self._leaving:
            raise Unavailable(
                f"This replica is {self._leaving}; try again.", reason="MODEL_SWAPPING", retry_after_seconds=5
            )
        if self._engine.state is not EngineState.READY:
            raise Unavailable(
                f"The engine is {self._engine.state.value}; try again.",
                reason="ENGINE_NOT_READY",
                retry_after_seconds=5,
            )

    async def load(self, model: PublishedModel, *, pin: bool = False, drain_seconds: float = 0.0) -> Held:
        """Put a model into the engine in place of the one that is there, which comes back if the new one fails.

        A caller that gives up leaves the swap to go on: an engine stopped half-way would serve nobody.

        Args:
            model: the model.
            pin: refuse later swaps.
            drain_seconds: how long running requests may take to end first; those that last longer are cut off.

        Raises:
            FailedPrecondition: the present model is pinned, or the engine refuses the new one.
        """
        task = asyncio.create_task(self._load(model, pin, drain_seconds), name=f"load {model.name}")
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    async def restart(self) -> None:
        """Stop the engine at once, and start it again with its model when it may. Raises as ``load`` does."""
        async with self._lock:
            if self._started_with is None:
                return
            async with self._leave("starting its engine again", 0.0):
                await self._engine.stop()
                await self._start_engine(self._started_with)

    async def unload(self, drain_seconds: float) -> None:
        """Stop the engine once running requests have ended, at the latest after ``drain_seconds``."""
        async with self._lock, self._leave("unloading its model", drain_seconds):
            self.held = self._started_with = None
            await self._engine.stop()

    async def close(self) -> None:
        """Give up what is being loaded and stop the engine."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._engine.stop()

    def _forget(self, task: asyncio.Task[Held]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            log.info("a model was not loaded", extra={"task": task.get_name(), "error": str(task.exception())})

    async def _load(self, model: PublishedModel, pin: bool, drain_seconds: float) -> Held:
        async with self._lock:
            present = self.held
            if present and self._started_with and _same(present.model, model):
                present.pinned = present.pinned or pin
                return present
            if present and present.pinned:
                raise FailedPrecondition(
                    f"The model {present.model.name!r} is pinned; unpin it before you load {model.name!r}.",
                    reason="MODEL_PINNED",
                )
            self._changing = (model, present.model) if present else (model,)
            try:
                # Before the present model leaves: a download may take long, or fail.
                target = await self._target(model)
                async with self._leave(f"changing to the model {model.name!r}", drain_seconds):
                    await self._start(Held(model, pinned=pin), target)
            finally:
                self._changing = ()
            assert self.held is not None
            return self.held

    async def _target(self, model: PublishedModel) -> WholeModel:
        if not self._engine.needs_files:
            return WholeModel(model.name)
        directory = await self._source.files(model)
        return WholeModel(model.name, directory, use_of(directory, await self._source.task(model)))

    async def _start(self, held: Held, target: WholeModel) -> None:
        previous, previous_target = self.held, self._started_with
        self.held, self._started_with = held, None
        try:
            await self._start_engine(target)
            self._started_with = target
        except MartletError:
            self.held = previous
            if previous_target:
                log.warning("bringing back the previous model", extra={"model": previous_target.name})
                await self._engine.start(previous_target)
                self._started_with = previous_target
            raise

    async def _start_engine(self, target: WholeModel) -> None:
        if self.gpus is not None:
            await self.gpus.ready()
        await self._engine.start(target)

    @asynccontextmanager
    async def _leave(self, what: str, drain_seconds: float) -> AsyncIterator[None]:
        """Refuse new requests for the time of the block, and let the running ones end first."""
        self._leaving = what
        self._changed()
        try:
            if not await self._wait_idle(drain_seconds):
                log.warning("requests are cut off: the replica is %s", what)
            yield
        finally:
            self._leaving = ""
            self._changed()


def _same(here: PublishedModel, wanted: PublishedModel) -> bool:
    return (here.name, here.artifact_id) == (wanted.name, wanted.artifact_id)
