"""The GPU leases of a machine on Redis or Valkey.

A machine has few GPUs and few holders, so all of it is one short text (``gpu_rules.GpuBook``): read, decided on here,
and set only if nobody has changed it meanwhile (``lua/gpus.lua``), by the server's clock. A decision that came too late
is made anew. The key lives a little longer than the last lease in it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TypeVar

import redis

from martlet_core import gpu_rules as rules
from martlet_core.errors import Unavailable
from martlet_core.gpus import GpuLease, GpuTicket, GpuWait, GpuWish
from martlet_core.redis_calls import DEFAULT_PREFIX, connect, send

T = TypeVar("T")

_TRIES = 100
_LONGEST_PAUSE_SECONDS = 0.02
_SPARE_SECONDS = 60.0


class RedisGpuLeases:
    """``GpuLeases`` on Redis or Valkey. Thread-safe.

    Args:
        client: must decode answers to str; ``from_url`` makes a fitting one.
        machine: what all processes on the same machine call it.
        prefix: of the key.
    """

    def __init__(self, client: redis.Redis, machine: str, *, prefix: str = DEFAULT_PREFIX) -> None:
        self._client = client
        self._key = f"{prefix}gpus:{machine}"
        self._script = client.register_script((resources.files("martlet_core") / "lua" / "gpus.lua").read_text())

    @classmethod
    def from_url(cls, url: str, machine: str, *, prefix: str = DEFAULT_PREFIX) -> RedisGpuLeases:
        """The leases on the server at ``url``. Connects later."""
        return cls(connect(url), machine, prefix=prefix)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def take(self, wish: GpuWish, lease_seconds: float) -> GpuLease | GpuWait:
        """See ``GpuLeases.take``."""
        rules.check_wish(wish)
        return self._change(lambda book, now: rules.take(book, wish, lease_seconds, now))

    def renew(self, lease: GpuLease, lease_seconds: float) -> None:
        """See ``GpuLeases.renew``."""
        self._change(lambda book, now: rules.renew(book, lease, lease_seconds, now))

    def release(self, holder: str) -> None:
        """See ``GpuLeases.release``."""
        self._change(lambda book, _now: rules.release(book, holder))

    def leases(self) -> Sequence[GpuLease]:
        """See ``GpuLeases.leases``."""
        text, now = self._read()
        return rules.in_order(rules.book_from_text(text), now)[0]

    def tickets(self) -> Sequence[GpuTicket]:
        """See ``GpuLeases.tickets``."""
        text, now = self._read()
        return rules.in_order(rules.book_from_text(text), now)[1]

    def _change(self, decide: Callable[[rules.GpuBook, float], T]) -> T:
        """Make a decision on the book as it is, and write what follows from it. One that fails writes nothing."""
        text, now = self._read()
        for _ in range(_TRIES):
            book = rules.book_from_text(text)
            outcome = decide(book, now)
            new = rules.book_to_text(book)
            life_ms = max(1, int((book.last_end - now + _SPARE_SECONDS) * 1000))
            done, present, micros = self._send(text, new, life_ms)
            if done:
                return outcome
            text, now = present, int(micros) / 1_000_000
            time.sleep(random.uniform(0, _LONGEST_PAUSE_SECONDS))  # apart from the others, no secret
        raise Unavailable("The GPU leases change too fast to be changed.", reason="JOB_STORE_UNAVAILABLE")

    def _read(self) -> tuple[str, float]:
        _, text, micros = self._send()
        return text, int(micros) / 1_000_000

    def _send(self, *args: str | int) -> tuple[int, str, str]:
        return send(lambda: self._script(args=(self._key, *args)))
