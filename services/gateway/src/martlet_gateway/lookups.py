"""What the hot path must know from the store (keys, names), kept for a moment in this process.

A value is looked up once at a time however many ask for it, in threads that large files don't take, and again in the
background before it is too old, so that a request hardly ever waits for the store. While the store doesn't answer, what
was known lately goes on being believed, for a while. Why not in Redis: docs/adr/0007.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from martlet_core.errors import MartletError, Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")
V = TypeVar("V")

_THREADS = 4
_SIZE = 10_000
#: Share of a value's life after which it is looked up again in the background.
_RENEW_AFTER = 0.5
_RETRY_SECONDS = 1.0


class LookupThreads:
    """Threads for short reads alone: files of gigabytes keep the others busy."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="lookup")

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call in a thread and wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)

    def close(self) -> None:
        """Begin no more calls."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(slots=True)
class _Entry(Generic[V]):
    """A value and its times by ``time.monotonic()``. ``failing``: the store didn't answer when it was to be renewed."""

    value: V | None
    renew_at: float
    until: float
    stale_until: float
    failing: bool = False


class Lookups(Generic[V]):
    """Values by key, for one event loop. ``find`` in its methods looks the key up; None says that there is nothing.

    Args:
        fresh_seconds: how long a value is believed.
        absent_seconds: how long it is believed that there is none.
        stale_seconds: how much longer a value is believed while ``find`` raises Unavailable.
    """

    def __init__(self, *, fresh_seconds: float, absent_seconds: float, stale_seconds: float) -> None:
        self._fresh_seconds = fresh_seconds
        self._absent_seconds = absent_seconds
        self._stale_seconds = stale_seconds
        self._entries: OrderedDict[Hashable, _Entry[V]] = OrderedDict()
        self._running: dict[Hashable, asyncio.Task[V | None]] = {}

    def known(self, key: Hashable, find: Callable[[], Awaitable[V | None]]) -> V | None:
        """The value if it is believed now; None means that ``get`` must be asked."""
        entry = self._entries.get(key)
        if entry is None or entry.value is None:
            return None
        now = time.monotonic()
        if entry.until <= now and not (entry.failing and entry.stale_until > now):
            return None
        if entry.renew_at <= now:
            entry.renew_at = now + _RETRY_SECONDS  # one that fails is tried again then
            self._begin(key, find)
        return entry.value

    async def get(self, key: Hashable, find: Callable[[], Awaitable[V | None]]) -> V | None:
        """The value; None if there is none.

        Raises:
            Unavailable: the store doesn't answer, and the value wasn't known lately.
        """
        known = self.known(key, find)
        if known is not None:
            return known
        entry = self._entries.get(key)
        if entry is not None and entry.value is None and entry.until > time.monotonic():
            return None
        try:
            return await asyncio.shield(self._begin(key, find))
        except Unavailable:
            known = self.known(key, find)
            if known is None:
                raise
            return known

    def forget(self, key: Hashable) -> None:
        """Look the key up anew when it is asked for again; what is being looked up now isn't kept."""
        self._entries.pop(key, None)
        self._running.pop(key, None)

    def _begin(self, key: Hashable, find: Callable[[], Awaitable[V | None]]) -> asyncio.Task[V | None]:
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.ensure_future(self._look(key, find))
            task.add_done_callback(lambda done: self._ended(key, done))
        return task

    async def _look(self, key: Hashable, find: Callable[[], Awaitable[V | None]]) -> V | None:
        value = await find()
        if self._running.get(key) is asyncio.current_task():
            now = time.monotonic()
            life = self._absent_seconds if value is None else self._fresh_seconds
            until = now + life
            self._entries[key] = _Entry(value, now + life * _RENEW_AFTER, until, until + self._stale_seconds)
            self._entries.move_to_end(key)
            while len(self._entries) > _SIZE:
                self._entries.popitem(last=False)
        return value

    def _ended(self, key: Hashable, task: asyncio.Task[V | None]) -> None:
        if self._running.get(key) is task:
            del self._running[key]
        error = None if task.cancelled() else task.exception()
        entry = self._entries.get(key)
        if error is None or entry is None:
            return
        if isinstance(error, Unavailable) and not entry.failing:
            log.warning("a lookup failed; what was known goes on being believed", extra={"error": error.message})
        elif not isinstance(error, MartletError):
            log.error("a lookup failed", exc_info=error)
        entry.failing = isinstance(error, Unavailable)
        entry.renew_at = time.monotonic() + _RETRY_SECONDS
