"""The cache of keys and names, by a clock of its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from martlet_core.errors import Internal, Unavailable
from martlet_gateway import lookups
from martlet_gateway.lookups import Lookups

FRESH, ABSENT, STALE = 10.0, 2.0, 300.0


@dataclass
class Clock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Store:
    """What is looked up: ``value`` or ``error``, once ``open``."""

    value: str | None = "a"
    error: Exception | None = None
    asked: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)

    async def find(self) -> str | None:
        self.asked += 1
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return self.value


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lookups, "time", made)
    return made


@pytest.fixture
async def store() -> Store:
    made = Store()
    made.open.set()
    return made


@pytest.fixture
def cache() -> Lookups[str]:
    return Lookups(fresh_seconds=FRESH, absent_seconds=ABSENT, stale_seconds=STALE)


async def settle() -> None:
    """Let background lookups end."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_believed_then_renewed_in_the_background(cache: Lookups[str], store: Store, clock: Clock) -> None:
    assert cache.known("k", store.find) is None
    assert await cache.get("k", store.find) == "a"
    clock.now += FRESH / 2 - 0.1
    assert cache.known("k", store.find) == "a"
    assert store.asked == 1
    store.value = "b"
    clock.now += 0.2
    assert cache.known("k", store.find) == "a", "nobody waits for the renewal"
    await settle()
    assert store.asked == 2
    assert cache.known("k", store.find) == "b"


async def test_a_value_that_is_gone_is_gone(cache: Lookups[str], store: Store, clock: Clock) -> None:
    await cache.get("k", store.find)
    store.value = None
    clock.now += FRESH / 2 + 0.1
    cache.known("k", store.find)
    await settle()
    assert cache.known("k", store.find) is None
    assert await cache.get("k", store.find) is None
    assert store.asked == 2, "that there is none is believed too"
    clock.now += ABSENT + 0.1
    store.value = "a"
    assert await cache.get("k", store.find) == "a"


async def test_one_lookup_however_many_ask(cache: Lookups[str], store: Store) -> None:
    store.open.clear()
    asking = [asyncio.create_task(cache.get("k", store.find)) for _ in range(10)]
    await settle()
    asking[0].cancel()  # whoever began it may go away
    store.open.set()
    values = await asyncio.gather(*asking, return_exceptions=True)
    assert values[1:] == ["a"] * 9
    assert store.asked == 1


async def test_the_store_is_away(cache: Lookups[str], store: Store, clock: Clock) -> None:
    await cache.get("k", store.find)
    store.error = Unavailable("gone")
    clock.now += FRESH + 1
    assert cache.known("k", store.find) is None
    assert await cache.get("k", store.find) == "a"
    asked = store.asked
    assert cache.known("k", store.find) == "a", "known at once now, and asked again a second later"
    assert store.asked == asked
    clock.now += 1.1
    assert cache.known("k", store.find) == "a"
    await settle()
    assert store.asked == asked + 1
    with pytest.raises(Unavailable):
        await cache.get("other", store.find)
    clock.now += STALE
    assert cache.known("k", store.find) is None
    with pytest.raises(Unavailable):
        await cache.get("k", store.find)
    store.error = None
    assert await cache.get("k", store.find) == "a"


async def test_only_a_store_that_is_away_makes_old_values_good(
    cache: Lookups[str], store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await cache.get("k", store.find)
    store.error = Internal("damaged")
    clock.now += FRESH + 1
    with pytest.raises(Internal):
        await cache.get("k", store.find)
    assert cache.known("k", store.find) is None


async def test_what_was_forgotten_is_looked_up_anew(cache: Lookups[str], store: Store) -> None:
    store.open.clear()
    asking = asyncio.create_task(cache.get("k", store.find))
    await settle()
    cache.forget("k")
    store.open.set()
    await asking
    assert cache.known("k", store.find) is None, "what was on its way isn't kept"
    assert await cache.get("k", store.find) == "a"


async def test_it_stays_small(cache: Lookups[str], store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "_SIZE", 3)
    for key in "abcd":
        await cache.get(key, store.find)
    assert [cache.known(key, store.find) for key in "abcd"] == [None, "a", "a", "a"]
