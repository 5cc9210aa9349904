"""The in-memory job store passes the suite that the real one passes."""

from __future__ import annotations

import pytest
from martlet_core.jobs import JobStore
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.job_store_suite import JobStoreSuite
from martlet_core.testing.job_store_suite.base import PassTime


class _Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class TestMemoryJobStore(JobStoreSuite):
    """The suite on a clock that the test moves."""

    @pytest.fixture
    def clock(self) -> _Clock:
        return _Clock()

    @pytest.fixture
    def store(self, clock: _Clock) -> JobStore:
        return MemoryJobStore(clock)

    @pytest.fixture
    def pass_time(self, clock: _Clock) -> PassTime:
        return clock.advance
