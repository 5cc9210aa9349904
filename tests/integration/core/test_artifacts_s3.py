"""Artifacts on a real S3 server: the suite, and uploads killed in their middle."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.ids import new_id
from martlet_core.testing.artifact_store_suite import ArtifactStoreSuite, make_directory, read_directory

KILLS = 4

UPLOAD = """
import sys
from pathlib import Path
from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.settings import CoreSettings

directory, artifact_id, tenant = sys.argv[1:]
store = ContentAddressedStore(S3ObjectStore.from_settings(CoreSettings()), Path(directory + ".cache"))
sys.stdin.readline()
store.put_directory(Path(directory), kind="checkpoint", tenant=tenant, artifact_id=artifact_id)
"""


class TestArtifactsOnS3(ArtifactStoreSuite):
    @pytest.fixture
    def objects(self, s3_store: S3ObjectStore) -> S3ObjectStore:
        return s3_store


def test_a_killed_upload_shows_nothing_and_its_repetition_succeeds(
    s3_store: S3ObjectStore, s3_settings: dict[str, str], tmp_path: Path
) -> None:
    """SIGKILL at a random moment after the first ref was written; the large file takes a multipart upload."""
    store = ContentAddressedStore(s3_store, tmp_path / "cache")
    rng = random.Random(7)
    interrupted = 0
    for round_number in range(KILLS):
        files = {"small": os.urandom(1000), "large": os.urandom(32 * 1024 * 1024), "other": os.urandom(1000)}
        source = make_directory(tmp_path / f"round{round_number}", files)
        artifact_id, tenant = new_id(), f"tenant-{new_id()}"
        process = _start_upload(source, artifact_id, tenant, s3_settings)
        _wait_for_refs(s3_store, artifact_id, process)
        deadline = time.monotonic() + rng.uniform(0, 0.3)
        while time.monotonic() < deadline and process.poll() is None:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = store.list(tenant=tenant).artifacts
        if process.returncode == -signal.SIGKILL and not found:
            interrupted += 1
        for artifact in found:  # it had got to its end: then it is whole
            store.download(artifact.id, tmp_path / f"early{round_number}")
            assert read_directory(tmp_path / f"early{round_number}") == files
        store.put_directory(source, kind="checkpoint", tenant=tenant, artifact_id=artifact_id)
        assert [artifact.id for artifact in store.list(tenant=tenant).artifacts] == [artifact_id]
        store.download(artifact_id, tmp_path / f"out{round_number}")
        assert read_directory(tmp_path / f"out{round_number}") == files
    assert interrupted > 0
    assert s3_store.abort_stale_uploads(older_than_seconds=-3600) >= 0
    assert s3_store.abort_stale_uploads(older_than_seconds=-3600) == 0


def _start_upload(source: Path, artifact_id: str, tenant: str, s3_settings: dict[str, str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **{f"MARTLET_{key.upper()}": value for key, value in s3_settings.items()}}
    process = subprocess.Popen(
        [sys.executable, "-c", UPLOAD, str(source), artifact_id, tenant], stdin=subprocess.PIPE, env=environment
    )
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()
    return process


def _wait_for_refs(objects: S3ObjectStore, artifact_id: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while not any(key.endswith(f"/{artifact_id}") for key in objects.list("refs/", limit=10_000)):
        assert time.monotonic() < deadline
        assert process.poll() is None, "the upload ended before it wrote a ref"
