"""What artifacts on any ObjectStore must do. Subclass ``ArtifactStoreSuite`` and give it an ``objects`` fixture."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from martlet_core.artifacts.layout import blob_key, manifest_key, ref_key
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import ObjectStore
from martlet_core.backoff import GaveUp
from martlet_core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from martlet_core.ids import new_id


class CountingObjects:
    """Passes everything on to an ObjectStore and counts the calls."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._objects, name)
        if not callable(method):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return method(*args, **kwargs)

        return call


def make_directory(directory: Path, files: dict[str, bytes]) -> Path:
    """Write files under a directory."""
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def read_directory(directory: Path) -> dict[str, bytes]:
    """The files under a directory."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


class ArtifactStoreSuite:
    """Tests; each has a tenant of its own, and contents that no other test has."""

    @pytest.fixture
    def counted(self, objects: ObjectStore) -> CountingObjects:
        return CountingObjects(objects)

    @pytest.fixture
    def store(self, counted: CountingObjects, tmp_path: Path) -> ContentAddressedStore:
        return ContentAddressedStore(counted, tmp_path / "cache")  # type: ignore[arg-type]

    @pytest.fixture
    def tenant(self) -> str:
        return f"tenant-{new_id()}"

    @pytest.fixture
    def files(self) -> dict[str, bytes]:
        return {
            "adapter_config.json": f'{{"id": "{new_id()}"}}'.encode(),
            "adapter_model.safetensors": os.urandom(2 * 1024 * 1024),
            "sub/dir/file": os.urandom(20),
            "sub/other": os.urandom(1024 * 1024),
        }

    @pytest.fixture
    def source(self, tmp_path: Path, files: dict[str, bytes]) -> Path:
        return make_directory(tmp_path / "source", files)

    def test_round_trip(
        self, store: ContentAddressedStore, source: Path, files: dict[str, bytes], tenant: str, tmp_path: Path
    ) -> None:
        made = store.put_directory(
            source,
            kind="adapter",
            tenant=tenant,
            display_name="mine",
            labels={"a": "b"},
            metadata={"rank": 16, "list": [1, None]},
            source_job="job1",
            parents=["p1"],
        )
        assert [f.path for f in made.files] == sorted(files)
        assert made.size_bytes == sum(map(len, files.values()))
        assert store.get(made.id) == made
        target = tmp_path / "target"
        make_directory(target, {"adapter_config.json": b"old", "other": b"stays"})
        assert store.download(made.id, target) == made
        assert read_directory(target) == {**files, "other": b"stays"}
        for file in made.files:
            assert b"".join(store.open_file(made, file.path)) == files[file.path]
        with pytest.raises(NotFound):
            store.open_file(made, "nothing")

    def test_second_upload_sends_nothing(
        self, store: ContentAddressedStore, counted: CountingObjects, source: Path, tenant: str
    ) -> None:
        first = store.put_directory(source, kind="adapter", tenant=tenant)
        assert counted.calls["upload"] == len(first.files)
        counted.calls.clear()
        second = store.put_directory(source, kind="model", tenant="someone-else")
        assert counted.calls["upload"] == 0
        assert second.id != first.id
        assert second.files == first.files

    def test_equal_files_are_sent_once(
        self, store: ContentAddressedStore, counted: CountingObjects, tmp_path: Path, tenant: str
    ) -> None:
        data = os.urandom(1000)
        source = make_directory(tmp_path / "twins", {"a": data, "b": data})
        made = store.put_directory(source, kind="report", tenant=tenant)
        assert counted.calls["upload"] == 1
        store.download(made.id, tmp_path / "out")
        assert read_directory(tmp_path / "out") == {"a": data, "b": data}

    def test_empty_files(self, store: ContentAddressedStore, tmp_path: Path, tenant: str) -> None:
        source = make_directory(tmp_path / "source", {"empty": b""})
        made = store.put_directory(source, kind="report", tenant=tenant)
        assert list(store.open_file(made, "empty")) == []
        store.download(made.id, tmp_path / "out")
        assert read_directory(tmp_path / "out") == {"empty": b""}

    def test_second_download_fetches_nothing(
        self, store: ContentAddressedStore, counted: CountingObjects, source: Path, tenant: str, tmp_path: Path
    ) -> None:
        made = store.put_directory(source, kind="adapter", tenant=tenant)
        store.download(made.id, tmp_path / "one")
        counted.calls.clear()
        store.download(made.id, tmp_path / "two")
        store.download(made.id, tmp_path / "two")
        assert counted.calls["download"] == 0
        assert read_directory(tmp_path / "two") == read_directory(tmp_path / "one")
        linked = (tmp_path / "one/adapter_config.json").stat()
        assert linked.st_ino == (tmp_path / "two/adapter_config.json").stat().st_ino
        assert linked.st_mode & 0o222 == 0

    def test_download_that_was_given_up_is_taken_up_again(
        self, store: ContentAddressedStore, source: Path, files: dict[str, bytes], tenant: str, tmp_path: Path
    ) -> None:
        made = store.put_directory(source, kind="adapter", tenant=tenant)
        with pytest.raises(GaveUp):
            store.download(made.id, tmp_path / "out", give_up=lambda: True)
        assert read_directory(tmp_path / "out") == {}
        store.download(made.id, tmp_path / "out", give_up=lambda: False)
        assert read_directory(tmp_path / "out") == files

    def test_tenants_are_apart(self, store: ContentAddressedStore, source: Path, tenant: str) -> None:
        made = store.put_directory(source, kind="adapter", tenant=tenant)
        assert store.get(made.id, tenant=tenant) == made
        for attempt in (store.get, store.delete):
            with pytest.raises(NotFound):
                attempt(made.id, tenant="someone-else")
        assert store.list(tenant="someone-else-" + tenant).artifacts == []
        assert store.list(tenant=tenant[:-1]).artifacts == []

    def test_listing(self, store: ContentAddressedStore, source: Path, tenant: str) -> None:
        kinds = ["adapter", "checkpoint", "adapter", "dataset", "adapter"]
        # Ids made in the same millisecond have no order: these follow one another.
        base = new_id()
        made = [
            store.put_directory(source, kind=kind, tenant=tenant, artifact_id=f"{base[:9]}{i}{base[10:]}")
            for i, kind in enumerate(kinds)
        ]
        newest_first = made[::-1]
        assert store.list(tenant=tenant).artifacts == newest_first
        assert store.list(tenant=tenant, kind="adapter").artifacts == [newest_first[i] for i in (0, 2, 4)]
        assert store.list(tenant=tenant, kind="model").artifacts == []
        for kind, wanted in ((None, newest_first), ("adapter", [newest_first[i] for i in (0, 2, 4)])):
            found, token = [], ""
            for _ in range(len(made) + 1):
                page = store.list(tenant=tenant, kind=kind, page_size=2, page_token=token)
                assert len(page.artifacts) <= 2
                found.extend(page.artifacts)
                token = page.next_page_token
                if not token:
                    break
            assert found == wanted
        for bad in ({"page_size": 0}, {"page_size": 1001}, {"page_token": "../x"}, {"kind": "lora"}):
            with pytest.raises(InvalidArgument):
                store.list(tenant=tenant, **bad)  # type: ignore[arg-type]

    def test_damaged_contents_are_refused(
        self,
        store: ContentAddressedStore,
        objects: ObjectStore,
        source: Path,
        files: dict[str, bytes],
        tenant: str,
        tmp_path: Path,
    ) -> None:
        made = store.put_directory(source, kind="adapter", tenant=tenant)
        name = "adapter_model.safetensors"
        key = blob_key(sha256(files[name]).hexdigest())
        damaged = bytearray(files[name])
        damaged[len(damaged) // 2] ^= 1
        for data in (bytes(damaged), bytes(damaged[:-1])):
            objects.put(key, data)
            with pytest.raises(FailedPrecondition) as caught:
                store.download(made.id, tmp_path / "out")
            assert caught.value.reason == "CONTENT_MISMATCH"
            assert not (tmp_path / "out" / name).exists()
            received = []
            with pytest.raises(FailedPrecondition):
                received.extend(store.open_file(made, name))
        objects.put(key, files[name])
        store.download(made.id, tmp_path / "out")
        assert read_directory(tmp_path / "out") == files

    def test_damaged_manifests_are_refused(
        self, store: ContentAddressedStore, objects: ObjectStore, source: Path, tenant: str
    ) -> None:
        made = store.put_directory(source, kind="adapter", tenant=tenant)
        manifest = objects.get(manifest_key(made.id))
        for damaged in (
            manifest[:-20],
            manifest.replace(b'"adapter"', b'"dataset"'),
            manifest.replace(b"adapter_config.json", b"../../../etc/passwd"),
            b"[]",
            b"",
        ):
            objects.put(manifest_key(made.id), damaged)
            with pytest.raises(FailedPrecondition, match="damaged"):
                store.get(made.id)

    def test_a_zombie_loses(
        self, store: ContentAddressedStore, objects: ObjectStore, source: Path, tenant: str, tmp_path: Path
    ) -> None:
        artifact_id = new_id()
        winner = store.put_directory(source, kind="adapter", tenant=tenant, artifact_id=artifact_id)
        assert store.put_directory(source, kind="adapter", tenant=tenant, artifact_id=artifact_id) == winner
        other = make_directory(tmp_path / "other", {"adapter_config.json": os.urandom(10)})
        with pytest.raises(AlreadyExists):
            store.put_directory(other, kind="adapter", tenant=tenant, artifact_id=artifact_id)
        with pytest.raises(AlreadyExists):
            store.put_directory(source, kind="adapter", tenant="someone-else", artifact_id=artifact_id)
        assert store.get(artifact_id) == winner

    def test_of_many_racers_one_commits_and_the_others_leave_nothing(
        self, store: ContentAddressedStore, objects: ObjectStore, tmp_path: Path, tenant: str
    ) -> None:
        racers, artifact_id, shared = 4, new_id(), os.urandom(100)
        barrier = Barrier(racers)
        sources = [
            make_directory(tmp_path / f"racer{i}", {"own": os.urandom(100), "shared": shared}) for i in range(racers)
        ]

        def race(source: Path) -> str:
            barrier.wait()
            try:
                store.put_directory(source, kind="adapter", tenant=tenant, artifact_id=artifact_id)
            except AlreadyExists:
                return "lost"
            return "won"

        with ThreadPoolExecutor(racers) as pool:
            results = list(pool.map(race, sources))
        assert sorted(results) == ["lost"] * (racers - 1) + ["won"]
        for result, source in zip(results, sources, strict=True):
            digest = sha256((source / "own").read_bytes()).hexdigest()
            assert (objects.size(blob_key(digest)) is not None) == (result == "won")
            assert (objects.size(ref_key(digest, artifact_id)) is not None) == (result == "won")
        store.download(artifact_id, tmp_path / "out")
        assert read_directory(tmp_path / "out") == read_directory(sources[results.index("won")])

    def test_deleting_keeps_what_others_share(
        self, store: ContentAddressedStore, objects: ObjectStore, tmp_path: Path, tenant: str
    ) -> None:
        shared, own = os.urandom(100), os.urandom(100)
        one = store.put_directory(
            make_directory(tmp_path / "1", {"s": shared, "own": own}), kind="adapter", tenant=tenant
        )
        two = store.put_directory(make_directory(tmp_path / "2", {"s": shared}), kind="adapter", tenant=tenant)
        store.delete(one.id, tenant=tenant)
        with pytest.raises(NotFound):
            store.get(one.id)
        with pytest.raises(NotFound):
            store.delete(one.id)
        assert store.list(tenant=tenant).artifacts == [two]
        assert objects.size(blob_key(sha256(own).hexdigest())) is None
        store.download(two.id, tmp_path / "out")
        assert read_directory(tmp_path / "out") == {"s": shared}
        store.delete(two.id)
        assert objects.size(blob_key(sha256(shared).hexdigest())) is None
        assert objects.list(f"refs/{sha256(shared).hexdigest()}/") == []
        assert objects.list(f"locks/blobs/{sha256(shared).hexdigest()}") == []

    def test_deleting_never_takes_what_an_upload_relies_on(
        self, store: ContentAddressedStore, tmp_path: Path, tenant: str
    ) -> None:
        """Uploads and deletions of one content cross all the time; every upload that returned can be read."""
        content = os.urandom(1000)
        source = make_directory(tmp_path / "source", {"file": content})

        def churn(_: int) -> int:
            for _ in range(6):
                made = store.put_directory(source, kind="adapter", tenant=tenant)
                assert b"".join(store.open_file(made, "file")) == content
                store.delete(made.id)
            return 6

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(churn, range(4))) == 24
