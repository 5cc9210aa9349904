"""The models on the local disk: what goes when room is needed, what stays, and what a killed process leaves."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_inference.model_cache import ModelCache

SIZE = 1000


class Models:
    """Artifacts of ``SIZE`` bytes each in a store, and a cache that holds three of them."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "models"
        self.store = ContentAddressedStore(MemoryObjectStore(), directory / "blobs")
        self._sources = directory / "sources"
        self.cache = ModelCache(self.root, 3 * SIZE)

    def make(self, size_bytes: int = SIZE) -> str:
        """A new artifact's id."""
        count = len(list(self._sources.iterdir())) if self._sources.is_dir() else 0
        files = self._sources / str(count)
        (files / "sub").mkdir(parents=True)
        (files / "sub" / "weights").write_bytes(bytes([count]) * size_bytes)
        return self.store.put_directory(files, kind="model", tenant="acme").id

    async def get(self, artifact_id: str) -> Path:
        return await self.cache.files(artifact_id, self.store)

    def restart(self) -> None:
        """A new process with the same directory."""
        self.cache.close()
        self.cache = ModelCache(self.root, 3 * SIZE)

    @property
    def present(self) -> set[str]:
        return {path.name for path in self.root.iterdir() if path.is_dir()}


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Models]:
    made = Models(tmp_path)
    yield made
    made.cache.close()
    made.store.close()


async def test_the_model_unused_for_longest_goes(models: Models) -> None:
    a, b, c, d = (models.make() for _ in range(4))
    for artifact in (a, b, c, a):
        assert (await models.get(artifact) / "sub" / "weights").stat().st_size == SIZE
    assert models.present == {a, b, c}
    await models.get(d)
    assert models.present == {a, c, d}
    await models.get(b)
    assert models.present == {a, d, b}


async def test_the_order_of_use_outlives_a_restart(models: Models) -> None:
    a, b, c, d = (models.make() for _ in range(4))
    for place, artifact in enumerate((a, b, c)):
        os.utime(await models.get(artifact), (place, place))
    await models.get(a)
    models.restart()
    await models.get(d)
    assert models.present == {a, c, d}


async def test_a_model_in_use_stays_whatever_comes(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    a, b, c, d = (models.make() for _ in range(4))
    for artifact in (a, b, c):
        await models.get(artifact)
    in_use = {a, b}
    models.cache.guard(lambda: in_use)
    await models.get(d)
    assert models.present == {a, b, d}
    in_use.add(d)
    with caplog.at_level(logging.WARNING):
        await models.get(c)
    assert models.present == {a, b, c, d}
    assert "larger than the cache may be" in caplog.text
    in_use.clear()
    await models.get(models.make())
    assert len(models.present) == 3, "what was too much goes as soon as it may"


async def test_a_model_larger_than_the_bound_takes_all_the_room(models: Models) -> None:
    small, large = models.make(), models.make(5 * SIZE)
    await models.get(small)
    assert (await models.get(large)).is_dir()
    assert models.present == {large}


async def test_what_a_killed_process_left_is_removed_at_the_start(models: Models) -> None:
    artifact = models.make()
    await models.get(artifact)
    for name in (f".{artifact}.partial-123", f".{artifact}.removed-456"):
        (models.root / name / "sub").mkdir(parents=True)
        (models.root / name / "sub" / "half").write_bytes(b"x")
    models.restart()
    assert models.present == {artifact}


async def test_a_directory_that_someone_removed_is_fetched_again(models: Models) -> None:
    a, b, c, d = (models.make() for _ in range(4))
    for artifact in (a, b, c):
        directory = await models.get(artifact)
        (directory / "sub" / "weights").unlink()
        (directory / "sub").rmdir()
        directory.rmdir()
    assert (await models.get(a) / "sub" / "weights").is_file()
    await models.get(d)  # makes room by removing what isn't there
    assert models.present == {a, d}


async def test_each_process_has_a_directory_of_its_own(models: Models) -> None:
    artifact = models.make()
    await models.get(artifact)
    other = ModelCache(models.root, 3 * SIZE)
    try:
        assert other.directory == models.root.with_name("models-1")
        assert (await other.files(artifact, models.store)).is_relative_to(other.directory)
        assert models.present == {artifact}
    finally:
        other.close()
