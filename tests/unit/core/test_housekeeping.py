"""The daily sweep."""

from __future__ import annotations

import json
from pathlib import Path

from martlet_core.artifacts.layout import ref_key
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.housekeeping import sweep_if_due
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore


def test_it_sweeps_once_a_day(tmp_path: Path) -> None:
    objects, jobs = MemoryObjectStore(), MemoryJobStore()
    artifacts = ContentAddressedStore(objects, tmp_path / "cache")
    objects.put(ref_key("0" * 64, "dead"), json.dumps({"time": 0}).encode())
    report = sweep_if_due(jobs, artifacts)
    assert report is not None
    assert report.refs == 1
    assert objects.list("") == []
    assert sweep_if_due(jobs, artifacts) is None
