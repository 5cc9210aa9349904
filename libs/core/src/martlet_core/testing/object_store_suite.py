"""What every ObjectStore must do. Subclass ``ObjectStoreSuite`` in a test module and give it a ``store`` fixture."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from threading import Barrier

import pytest

from martlet_core.artifacts.types import ObjectStore
from martlet_core.backoff import GaveUp
from martlet_core.errors import FailedPrecondition, NotFound
from martlet_core.ids import new_id

RACERS = 8
ROUNDS = 4


class ObjectStoreSuite:
    """Tests; the ``store`` fixture gives an ObjectStore, and keys are made unique by ``prefix``."""

    @pytest.fixture
    def prefix(self) -> str:
        return f"suite/{new_id()}/"

    def test_put_get_delete(self, store: ObjectStore, prefix: str) -> None:
        key = prefix + "a"
        with pytest.raises(NotFound):
            store.get(key)
        assert store.size(key) is None
        store.put(key, b"one")
        store.put(key, b"three")
        assert store.get(key) == b"three"
        assert store.size(key) == 5
        with store.open(key) as stream:
            assert stream.read(2) + stream.read() == b"three"
        store.delete(key)
        store.delete(key)
        assert store.size(key) is None
        with pytest.raises(NotFound):
            store.open(key)

    def test_empty_object(self, store: ObjectStore, prefix: str, tmp_path: Path) -> None:
        store.put(prefix + "empty", b"")
        assert store.get(prefix + "empty") == b""
        assert store.size(prefix + "empty") == 0
        assert store.download(prefix + "empty", tmp_path / "empty", 0) == sha256(b"").hexdigest()
        assert (tmp_path / "empty").read_bytes() == b""
        (tmp_path / "source").touch()
        store.upload(prefix + "empty2", tmp_path / "source")
        assert store.size(prefix + "empty2") == 0

    def test_keys_with_unusual_characters(self, store: ObjectStore, prefix: str) -> None:
        for name in ("a=3Ab.json", "with space", "ünï", "a+b", "a.b_c-d~e"):
            store.put(prefix + name, name.encode())
            assert store.get(prefix + name) == name.encode()
        assert len(store.list(prefix)) == 5

    def test_put_if_absent(self, store: ObjectStore, prefix: str) -> None:
        key = prefix + "once"
        assert store.put_if_absent(key, b"first")
        assert not store.put_if_absent(key, b"second")
        assert not store.put_if_absent(key, b"first")
        assert store.get(key) == b"first"
        store.delete(key)
        assert store.put_if_absent(key, b"third")
        assert store.get(key) == b"third"

    def test_racers_have_one_winner(self, store: ObjectStore, prefix: str) -> None:
        with ThreadPoolExecutor(RACERS) as pool:
            for round_number in range(ROUNDS):
                barrier = Barrier(RACERS)
                key = f"{prefix}race{round_number}"

                def race(racer: int, key: str = key, barrier: Barrier = barrier) -> bool:
                    barrier.wait()
                    return store.put_if_absent(key, f"racer {racer}".encode())

                won = list(pool.map(race, range(RACERS)))
                assert won.count(True) == 1
                assert store.get(key) == f"racer {won.index(True)}".encode()

    @pytest.mark.parametrize("size", [1, 8 * 1024 * 1024, 8 * 1024 * 1024 + 1, 40 * 1024 * 1024 + 17])
    def test_files(self, store: ObjectStore, prefix: str, tmp_path: Path, size: int) -> None:
        data = (bytes(range(256)) * (size // 256 + 1))[: size - 1] + b"!"
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(data)
        store.upload(prefix + "file", source)
        assert store.size(prefix + "file") == size
        target.write_bytes(b"old")
        assert store.download(prefix + "file", target, size) == sha256(data).hexdigest()
        assert target.read_bytes() == data
        assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"]  # no temporary file is left

    @pytest.mark.parametrize("size", [100, 20 * 1024 * 1024])
    def test_failed_downloads_leave_nothing(self, store: ObjectStore, prefix: str, tmp_path: Path, size: int) -> None:
        with pytest.raises(NotFound):
            store.download(prefix + "missing", tmp_path / "target", size)
        store.put(prefix + "short", b"x" * (size // 2))
        with pytest.raises(FailedPrecondition, match="bytes"):
            store.download(prefix + "short", tmp_path / "target", size)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("looks", [0, 3])
    def test_downloads_that_are_given_up_leave_nothing(
        self, store: ObjectStore, prefix: str, tmp_path: Path, looks: int
    ) -> None:
        size = 20 * 1024 * 1024
        store.put(prefix + "large", b"x" * size)
        seen = 0

        def give_up() -> bool:
            nonlocal seen
            seen += 1
            return seen > looks

        with pytest.raises(GaveUp):
            store.download(prefix + "large", tmp_path / "target", size, give_up=give_up)
        assert seen == looks + 1, "it went on after it was given up"
        assert list(tmp_path.iterdir()) == []
        store.download(prefix + "large", tmp_path / "target", size, give_up=lambda: False)
        assert (tmp_path / "target").stat().st_size == size

    def test_a_missing_local_file_is_not_the_stores_fault(
        self, store: ObjectStore, prefix: str, tmp_path: Path
    ) -> None:
        with pytest.raises(FileNotFoundError):
            store.upload(prefix + "x", tmp_path / "nothing")

    def test_list(self, store: ObjectStore, prefix: str) -> None:
        names = [f"{prefix}dir/{i:03}" for i in range(25)]
        for name in reversed(names):
            store.put(name, b"x")
        store.put(prefix + "other", b"x")
        assert store.list(prefix + "dir/") == names
        assert store.list(prefix + "dir/", limit=10) == names[:10]
        assert store.list(prefix + "dir/", after=names[9], limit=10) == names[10:20]
        assert store.list(prefix + "dir/", after=names[-1]) == []
        assert store.list(prefix + "none/") == []

    def test_uri(self, store: ObjectStore) -> None:
        assert store.uri("a/b").startswith("s3://")
        assert store.uri("a/b").endswith("/a/b")
