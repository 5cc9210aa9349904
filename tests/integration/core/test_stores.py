"""open_stores on real servers, and keeping them tidy."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from martlet_core.artifacts.layout import ref_key
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import Unavailable
from martlet_core.housekeeping import Housekeeper, store_chores
from martlet_core.ids import new_id, output_artifact_id
from martlet_core.job_archive import mark_whole
from martlet_core.jobs import Job, JobState
from martlet_core.leftovers import sweep_attempts
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


def test_leftovers_are_swept_by_one_process(redis_url: str, s3_settings: dict[str, str], tmp_path: Path) -> None:
    settings = CoreSettings(redis_url=redis_url, cache_dir=tmp_path / "cache", **s3_settings)  # type: ignore[arg-type]
    stores = open_stores(settings)
    tenant, day = f"tenant-{new_id()}", 24 * 3600.0
    job, _ = stores.jobs.create(Job(new_id(), "toy", "counting", tenant, {}, "toy"))
    assert stores.jobs.claim(job.id, "worker", 30.0) is not None
    source = make_directory(tmp_path / "source", {"model": new_id().encode()})
    lost, result = (
        stores.artifacts.put_directory(
            source, kind="adapter", tenant=tenant, artifact_id=artifact_id, source_job=job.id
        )
        for artifact_id in (output_artifact_id(job.id, 7, "model"), output_artifact_id(job.id, 1, "model"))
    )
    stores.jobs.finish(job.id, 1, JobState.SUCCEEDED, result={"model_artifact": f"artifacts/{result.id}"})
    mark_whole(stores.jobs, "toy")
    dead = ref_key("0" * 64, new_id())
    stores.objects.put(dead, json.dumps({"time": 0}).encode())

    first, second = (Housekeeper(stores.jobs, store_chores(stores, ["toy"]), day) for _ in range(2))
    assert first.run_due() == ["objects", "attempts"]
    assert second.run_due() == []
    assert stores.objects.size(dead) is None
    assert len(stores.artifacts.list(tenant=tenant).artifacts) == 2

    assert sweep_attempts(stores, ["toy"], clock=lambda: time.time() + 2 * day) == 1
    assert stores.artifacts.list(tenant=tenant).artifacts == [result]
    assert b"".join(stores.artifacts.open_file(result, "model")) == (source / "model").read_bytes()
    assert lost.files == result.files
