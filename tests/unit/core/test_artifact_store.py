"""Artifacts on the in-memory store: the suite, and what needs an exact order of steps."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from martlet_core.artifacts import collector
from martlet_core.artifacts.cache import BlobCache
from martlet_core.artifacts.layout import blob_key, check_path, index_key, lock_key, manifest_key, ref_key
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import ArtifactFile, ArtifactStore
from martlet_core.errors import InvalidArgument
from martlet_core.ids import new_id
from martlet_core.testing.artifact_store_suite import ArtifactStoreSuite, make_directory, read_directory
from martlet_core.testing.object_store import MemoryObjectStore

CONTENT = b"content"
DIGEST = sha256(CONTENT).hexdigest()


class TestArtifactsInMemory(ArtifactStoreSuite):
    @pytest.fixture
    def objects(self) -> MemoryObjectStore:
        return MemoryObjectStore()


@pytest.fixture
def objects() -> MemoryObjectStore:
    return MemoryObjectStore()


@pytest.fixture
def store(objects: MemoryObjectStore, tmp_path: Path) -> ContentAddressedStore:
    return ContentAddressedStore(objects, tmp_path / "cache")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_directory(tmp_path / "source", {"file": CONTENT})


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/.", "a\\b", "a\0b", "a%2fb", "ü", "x" * 129, "a/" * 600],
)
def test_bad_paths(path: str) -> None:
    with pytest.raises(InvalidArgument, match="usable path"):
        check_path(path)


@pytest.mark.parametrize("path", ["a", ".gitattributes", "a/b-c_d.e/..f", "1_Pooling/config.json"])
def test_good_paths(path: str) -> None:
    assert check_path(path) == path


def test_what_cant_be_stored_is_named(store: ArtifactStore, objects: MemoryObjectStore, tmp_path: Path) -> None:
    good = make_directory(tmp_path / "good", {"a": b"x"})
    linked = make_directory(tmp_path / "linked", {"a": b"x"})
    (linked / "secret").symlink_to("/etc/passwd")
    (tmp_path / "empty/dir").mkdir(parents=True)
    named = make_directory(tmp_path / "named", {"with space": b"x"})
    fields: dict[str, Any] = {"kind": "adapter", "tenant": "acme"}
    for directory, bad, message in (
        (linked, {}, "secret: is a symbolic link"),
        (tmp_path / "empty", {}, "no files"),
        (tmp_path / "missing", {}, "not a directory"),
        (named, {}, "with space"),
        (good, {"kind": "lora"}, "kind"),
        (good, {"tenant": "../x"}, "tenant"),
        (good, {"artifact_id": "../x"}, "artifact_id"),
        (good, {"metadata": {"a": object()}}, "metadata"),
        (good, {"metadata": {"a": float("nan")}}, "metadata"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            store.put_directory(directory, **{**fields, **bad})
    assert objects.list("") == []


def test_an_uploader_waits_for_a_collector(objects: MemoryObjectStore, source: Path, tmp_path: Path) -> None:
    """The collector has seen no refs and is about to delete; the uploader must not take the content for stored."""
    objects.put(blob_key(DIGEST), CONTENT)
    about_to_delete, go_on = Event(), Event()

    class Paused(MemoryObjectStore):
        def delete(self, key: str) -> None:
            if key == blob_key(DIGEST):
                about_to_delete.set()
                assert go_on.wait(10)
            super().delete(key)

    objects.__class__ = Paused
    store = ContentAddressedStore(objects, tmp_path / "cache")
    with ThreadPoolExecutor(2) as pool:
        reclaiming = pool.submit(collector.reclaim, objects, DIGEST)
        assert about_to_delete.wait(10)
        uploading = pool.submit(store.put_directory, source, kind="adapter", tenant="acme")
        deadline = time.monotonic() + 10
        while not objects.list(f"refs/{DIGEST}/"):  # the uploader is under way
            assert time.monotonic() < deadline
        assert not uploading.done()
        go_on.set()
        assert reclaiming.result(10)
        made = uploading.result(10)
    assert b"".join(store.open_file(made, "file")) == CONTENT


def test_a_collector_sees_an_uploaders_ref(objects: MemoryObjectStore) -> None:
    objects.put(blob_key(DIGEST), CONTENT)
    objects.put(ref_key(DIGEST, "a"), collector.timestamp_body())
    assert not collector.reclaim(objects, DIGEST)
    assert objects.size(blob_key(DIGEST)) == len(CONTENT)
    objects.delete(ref_key(DIGEST, "a"))
    objects.put(lock_key(DIGEST), collector.timestamp_body())
    assert not collector.reclaim(objects, DIGEST)  # another collector is at it
    assert objects.size(lock_key(DIGEST)) is not None  # and its lock is left alone


def test_a_dead_collectors_lock_holds_nobody_up(
    objects: MemoryObjectStore, store: ContentAddressedStore, source: Path
) -> None:
    objects.put(lock_key(DIGEST), _body(age=600))
    made = store.put_directory(source, kind="adapter", tenant="acme")
    assert store.get(made.id) == made
    assert store.sweep().locks == 1
    assert objects.list("locks/") == []


def test_a_sweep_removes_what_kills_left(
    objects: MemoryObjectStore, store: ContentAddressedStore, source: Path
) -> None:
    kept = store.put_directory(source, kind="adapter", tenant="acme")
    before = objects.list("")
    day = 2 * 24 * 3600.0
    orphan = sha256(b"orphan").hexdigest()
    objects.put(ref_key(orphan, new_id()), _body(age=day))  # killed while uploading
    objects.put(blob_key(orphan), b"orphan")
    objects.put(ref_key(orphan, kept.id), _body(age=day))  # lost to a winner, and killed before it took its refs back
    objects.put(index_key("acme", new_id(), "adapter"), _body(age=day))
    objects.put(blob_key(sha256(b"loose").hexdigest()), b"loose")  # killed while deleting
    running = sha256(b"running").hexdigest()
    fresh = {ref_key(running, new_id()): _body(age=60), index_key("acme", new_id(), "adapter"): _body(age=60)}
    for key, body in fresh.items():
        objects.put(key, body)
    objects.put(blob_key(running), b"running")

    report = store.sweep()

    assert (report.refs, report.blobs, report.index_entries, report.locks) == (2, 2, 1, 0)
    assert objects.list("") == sorted([*before, *fresh, blob_key(running)])
    with pytest.raises(InvalidArgument, match="older_than_seconds"):
        store.sweep(older_than_seconds=60)


def test_a_damaged_manifest_keeps_its_contents_and_does_not_stop_the_sweep(
    objects: MemoryObjectStore, store: ContentAddressedStore, source: Path
) -> None:
    damaged = store.put_directory(source, kind="adapter", tenant="acme")
    objects.put(manifest_key(damaged.id), b"not json")
    before = objects.list("")
    for file in damaged.files:
        objects.put(ref_key(file.sha256, damaged.id), _body(age=3 * 24 * 3600.0))
    objects.put(ref_key(DIGEST, new_id()), _body(age=3 * 24 * 3600.0))
    assert store.sweep().refs == 1
    assert objects.list("") == before


def test_a_slow_upload_checks_its_contents_again(objects: MemoryObjectStore, source: Path, tmp_path: Path) -> None:
    """Between its refs and its manifest a sweep took it for abandoned; what it commits is whole all the same."""
    store = ContentAddressedStore(objects, tmp_path / "cache", upload_limit_seconds=0.05)

    class Slow(MemoryObjectStore):
        slept = False

        def upload(self, key: str, path: Path) -> None:
            super().upload(key, path)
            if not self.slept:
                self.slept = True
                deadline = time.monotonic() + 0.1
                while time.monotonic() < deadline:  # longer than the limit
                    pass
                assert store.sweep(older_than_seconds=0.1).refs == 1
                self.delete(blob_key(DIGEST))

    objects.__class__ = Slow
    made = store.put_directory(source, kind="adapter", tenant="acme")
    assert objects.size(ref_key(DIGEST, made.id)) is not None
    assert b"".join(store.open_file(made, "file")) == CONTENT


def test_a_failed_upload_commits_nothing(objects: MemoryObjectStore, source: Path, tmp_path: Path) -> None:
    class Broken(MemoryObjectStore):
        def upload(self, key: str, path: Path) -> None:
            raise ConnectionResetError

    objects.__class__ = Broken
    store = ContentAddressedStore(objects, tmp_path / "cache")
    with pytest.raises(ConnectionResetError):
        store.put_directory(source, kind="adapter", tenant="acme")
    assert objects.list("artifacts/") == []
    assert store.list(tenant="acme").artifacts == []
    objects.__class__ = MemoryObjectStore
    store.put_directory(source, kind="adapter", tenant="acme")
    assert len(store.list(tenant="acme").artifacts) == 1


def test_a_killed_deletion_hides_the_artifact(
    objects: MemoryObjectStore, store: ContentAddressedStore, source: Path
) -> None:
    made = store.put_directory(source, kind="adapter", tenant="acme")
    objects.delete(manifest_key(made.id))  # the first step of deleting; the others didn't happen
    assert store.list(tenant="acme").artifacts == []


def test_files_may_be_given_by_name(objects: MemoryObjectStore, store: ContentAddressedStore, source: Path) -> None:
    made = store.put_files({"data/renamed.jsonl": source / "file"}, kind="dataset", tenant="acme")
    assert made.files == (ArtifactFile("data/renamed.jsonl", DIGEST, len(CONTENT)),)
    with pytest.raises(InvalidArgument, match="usable path"):
        store.put_files({"../renamed": source / "file"}, kind="dataset", tenant="acme")


class TestCache:
    def test_changed_entries_are_fetched_again(
        self, store: ContentAddressedStore, source: Path, tmp_path: Path
    ) -> None:
        made = store.put_directory(source, kind="adapter", tenant="acme")
        store.download(made.id, tmp_path / "one")
        link = tmp_path / "one/file"
        link.chmod(0o644)
        link.write_bytes(b"CONTENT")  # the same inode as the cache's
        store.download(made.id, tmp_path / "two")
        assert read_directory(tmp_path / "two") == {"file": CONTENT}
        entry = next((tmp_path / "cache").iterdir())
        entry.chmod(0o644)
        entry.write_bytes(b"short")
        store.download(made.id, tmp_path / "two")
        assert read_directory(tmp_path / "two") == {"file": CONTENT}

    def test_a_touched_but_sound_entry_is_kept(
        self, store: ContentAddressedStore, objects: MemoryObjectStore, source: Path, tmp_path: Path
    ) -> None:
        made = store.put_directory(source, kind="adapter", tenant="acme")
        store.download(made.id, tmp_path / "one")
        os.utime(tmp_path / "one/file")
        fetched = objects.calls["get"]
        store.download(made.id, tmp_path / "two")
        assert objects.calls["get"] == fetched + 1  # the manifest

    def test_it_stays_within_its_bound(self, objects: MemoryObjectStore, tmp_path: Path) -> None:
        store = ContentAddressedStore(objects, tmp_path / "cache", cache_max_bytes=250, workers=1)
        made = [
            store.put_directory(make_directory(tmp_path / n, {n: os.urandom(100)}), kind="adapter", tenant="acme")
            for n in "abc"
        ]
        digests = [artifact.files[0].sha256 for artifact in made]
        store.download(made[0].id, tmp_path / "out")
        store.download(made[1].id, tmp_path / "out")
        store.download(made[0].id, tmp_path / "out")  # used again: now b is the oldest
        store.download(made[2].id, tmp_path / "out")
        assert [digest in store.cache for digest in digests] == [True, False, True]
        assert len(read_directory(tmp_path / "out")) == 3  # what was linked stays

    def test_crossing_insertions_and_evictions(self, tmp_path: Path) -> None:
        """Every insertion evicts all others, from many threads at once; each content arrives all the same."""
        cache = BlobCache(tmp_path / "cache", max_bytes=1)
        contents = {sha256(data).hexdigest(): data for data in (os.urandom(100) for _ in range(100))}

        def place(digest: str) -> bool:
            def fetch(path: Path) -> str:
                path.write_bytes(contents[digest])
                return digest

            cache.place(digest, 100, tmp_path / digest, fetch)
            return (tmp_path / digest).read_bytes() == contents[digest]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(place, contents))
        assert len(list((tmp_path / "cache").iterdir())) <= 8

    def test_it_works_without_links(
        self, store: ContentAddressedStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refuse)
        made = store.put_directory(source, kind="adapter", tenant="acme")
        store.download(made.id, tmp_path / "out")
        assert read_directory(tmp_path / "out") == {"file": CONTENT}

    def test_abandoned_temporary_files_go(self, store: ContentAddressedStore, source: Path, tmp_path: Path) -> None:
        old, new = tmp_path / "cache/x.1-a.tmp", tmp_path / "cache/y.1-b.tmp"
        old.touch()
        new.touch()
        os.utime(old, (1, 1))
        made = store.put_directory(source, kind="adapter", tenant="acme")
        store.download(made.id, tmp_path / "out")
        assert not old.exists()
        assert new.exists()


def _body(*, age: float) -> bytes:
    return json.dumps({"time": time.time() - age}).encode()
