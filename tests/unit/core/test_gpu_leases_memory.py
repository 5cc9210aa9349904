"""The in-memory GPU leases pass the suite that the real ones pass; and what only a moved clock can show."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from martlet_core.gpu_rules import TICKET_SECONDS, describe_wait
from martlet_core.gpus import GpuWait
from martlet_core.testing.gpu_lease_suite import LONG, GpuLeaseSuite, PassTime, taken, waits, wish
from martlet_core.testing.gpu_leases import MemoryGpuLeases


class _Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def gpus(clock: _Clock) -> MemoryGpuLeases:
    return MemoryGpuLeases(clock)


class TestMemoryGpuLeases(GpuLeaseSuite):
    """The suite on a clock that the test moves."""

    @pytest.fixture
    def gpus(self, gpus: MemoryGpuLeases) -> MemoryGpuLeases:
        return gpus

    @pytest.fixture
    def pass_time(self, clock: _Clock) -> PassTime:
        return clock.advance

    @pytest.fixture
    def lose_all(self, gpus: MemoryGpuLeases) -> Callable[[], None]:
        return gpus.forget_all


def test_a_waiter_that_died_keeps_nobody_waiting(gpus: MemoryGpuLeases, clock: _Clock) -> None:
    taken(gpus, wish("x"), 3 * TICKET_SECONDS)
    waits(gpus, wish("dead"))
    clock.advance(TICKET_SECONDS / 2)
    waits(gpus, wish("alive"))
    clock.advance(TICKET_SECONDS / 2 + 0.01)
    gpus.release("x")
    taken(gpus, wish("alive"))


def test_asking_again_keeps_the_place(gpus: MemoryGpuLeases, clock: _Clock) -> None:
    taken(gpus, wish("x"), 10 * TICKET_SECONDS)
    waits(gpus, wish("first"))
    waits(gpus, wish("second"))
    for _ in range(5):
        clock.advance(TICKET_SECONDS / 2)
        waits(gpus, wish("second"))
        waits(gpus, wish("first"))
    gpus.release("x")
    waits(gpus, wish("second"))
    taken(gpus, wish("first"))


def test_the_reason_names_who_holds_what(gpus: MemoryGpuLeases) -> None:
    names = {"a": "GPU 0 of host", "b": "GPU 1 of host"}
    gpus.take(wish("replica", "a", share=0.35, lasting=True), LONG)
    gpus.take(wish("job", "a", share=0.65), LONG)
    mine = wish("mine", "a", share=0.65)
    wait = waits(gpus, mine)
    assert describe_wait(mine, wait, names) == (
        "waiting for a GPU: GPU 0 of host is held by job replica (0.35) and job job (0.65)"
    )
    both = wish("both", "a", "b", count=2)
    wait = waits(gpus, both)
    assert isinstance(wait, GpuWait)
    assert describe_wait(both, wait, names) == (
        "waiting for 2 GPUs: GPU 0 of host is held by job replica (0.35) and job job (0.65); GPU 1 of host is free; "
        "job mine came first"
    )
