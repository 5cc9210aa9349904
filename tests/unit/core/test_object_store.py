"""The in-memory object store passes the suite of the real one."""

from __future__ import annotations

import pytest
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_core.testing.object_store_suite import ObjectStoreSuite


class TestMemoryObjectStore(ObjectStoreSuite):
    @pytest.fixture
    def store(self) -> MemoryObjectStore:
        return MemoryObjectStore()
