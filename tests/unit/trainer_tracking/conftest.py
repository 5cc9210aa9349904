"""Fixtures of the trackers' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.models import ObjectModelRegistry
from martlet_core.stores import Stores
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    """Everything in memory."""
    objects = MemoryObjectStore()
    return Stores(
        MemoryJobStore(), objects, ContentAddressedStore(objects, tmp_path / "c"), ObjectModelRegistry(objects)
    )
