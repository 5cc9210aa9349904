"""S3ObjectStore against a real S3 server."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.errors import FailedPrecondition, Unavailable
from martlet_core.ids import new_id
from martlet_core.local_servers import free_port
from martlet_core.testing.object_store_suite import ObjectStoreSuite


class TestS3ObjectStore(ObjectStoreSuite):
    @pytest.fixture
    def store(self, s3_store: S3ObjectStore) -> S3ObjectStore:
        return s3_store


def test_presigned_urls(s3_store: S3ObjectStore) -> None:
    key = f"presigned/{new_id()}"
    request = urllib.request.Request(s3_store.presign_put(key, 60), data=b"by url", method="PUT")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(s3_store.presign_get(key, 60)) as answer:
        assert answer.read() == b"by url"


def test_presigned_urls_name_the_public_endpoint(s3_settings: dict[str, str]) -> None:
    store = S3ObjectStore(
        s3_settings["s3_endpoint"], "key", "secret", "bucket", public_endpoint="https://files.example.com"
    )
    assert store.presign_get("a/b", 60).startswith("https://files.example.com/bucket/a/b?")
    store.close()


def test_prepare_makes_the_bucket(s3_settings: dict[str, str]) -> None:
    store = S3ObjectStore(
        s3_settings["s3_endpoint"],
        s3_settings["s3_access_key"],
        s3_settings["s3_secret_key"],
        f"bucket-{new_id()}",
    )
    store.prepare()
    store.prepare()
    store.put("a", b"b")
    assert store.list("") == ["a"]  # the probe left nothing
    store.close()


def test_a_store_that_ignores_conditions_is_refused(s3_store: S3ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrite(key: str, data: bytes, **_: object) -> bool:
        s3_store.put(key, data)
        return True

    monkeypatch.setattr(s3_store, "put_if_absent", overwrite)
    with pytest.raises(FailedPrecondition, match="If-None-Match"):
        s3_store.verify_conditional_put()


def test_a_wrong_key_is_named(s3_settings: dict[str, str]) -> None:
    store = S3ObjectStore(s3_settings["s3_endpoint"], s3_settings["s3_access_key"], "wrong", "martlet")
    for attempt in (
        store.prepare,
        lambda: store.get("x"),
        lambda: store.put("x", b""),
        lambda: store.put_if_absent("x", b""),
        lambda: store.size("x"),
    ):
        with pytest.raises(FailedPrecondition, match="MARTLET_S3_SECRET_KEY"):
            attempt()
    store.close()


def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    store = S3ObjectStore(f"http://127.0.0.1:{free_port()}", "key", "secret", "martlet")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(Unavailable):
        store.put_if_absent("x", b"")
    with pytest.raises(Unavailable):
        store.size("x")
    store.close()


def test_a_bad_endpoint_is_named() -> None:
    with pytest.raises(FailedPrecondition, match="MARTLET_S3_ENDPOINT"):
        S3ObjectStore("127.0.0.1:8333", "key", "secret", "martlet")


def test_stale_multipart_uploads_are_aborted(s3_store: S3ObjectStore) -> None:
    client = s3_store._client
    client._create_multipart_upload("martlet", f"stale/{new_id()}", {})
    assert s3_store.abort_stale_uploads(older_than_seconds=3600) == 0
    assert s3_store.abort_stale_uploads(older_than_seconds=-3600) >= 1
    assert client._list_multipart_uploads("martlet").uploads == []
