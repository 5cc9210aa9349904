"""open_stores on real servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import Unavailable
from martlet_core.ids import new_id
from martlet_core.local_servers import free_port
from martlet_core.settings import CoreSettings
from martlet_core.stores import open_stores
from martlet_core.testing.artifact_store_suite import make_directory, read_directory


def test_everything_is_open_and_usable(redis_url: str, s3_settings: dict[str, str], tmp_path: Path) -> None:
    stores = open_stores(CoreSettings(redis_url=redis_url, cache_dir=tmp_path / "cache", **s3_settings))  # type: ignore[arg-type]
    tenant = f"tenant-{new_id()}"
    source = make_directory(tmp_path / "source", {"adapter_config.json": b"{}"})
    artifact = stores.artifacts.put_directory(source, kind="adapter", tenant=tenant)
    name = f"ft:smollm2:{tenant}::{new_id()[-8:]}"
    stores.models.publish(PublishedModel(name, "adapter", tenant, artifact.id, "smollm2", 16))
    found = stores.models.get(name, tenant=tenant)
    stores.artifacts.download(found.artifact_id, tmp_path / "out")
    assert read_directory(tmp_path / "out") == {"adapter_config.json": b"{}"}
    assert [model.name for model in stores.models.list(tenant=tenant)] == [name]
    secret, key = stores.api_keys.create(tenant)
    assert stores.api_keys.verify(secret) == key
    assert key in stores.api_keys.list(tenant=tenant)
    assert stores.jobs.list(tenant=tenant).jobs == []


def test_a_missing_part_is_named(redis_url: str, s3_settings: dict[str, str], tmp_path: Path) -> None:
    settings = {"redis_url": redis_url, "cache_dir": tmp_path, **s3_settings}
    nowhere = f"127.0.0.1:{free_port()}"
    for name, url in (("redis_url", f"redis://{nowhere}/0"), ("s3_endpoint", f"http://{nowhere}")):
        with pytest.raises(Unavailable):
            open_stores(CoreSettings(**{**settings, name: url}))  # type: ignore[arg-type]
