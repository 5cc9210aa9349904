"""Names and files from the registry and the artifact store, over the in-memory object store."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, NotFound, Unavailable
from martlet_core.models import ObjectModelRegistry
from martlet_core.testing.hub import FakeHub
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_inference.hub import HubModels
from martlet_inference.model_cache import ModelCache
from martlet_inference.model_source import FixedSource, RegistrySource


class CountingStore(ContentAddressedStore):
    """Counts downloads; each waits for ``go``."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.downloads = 0
        self.go = threading.Event()
        self.go.set()
        self.failures = 0

    def download(self, artifact_id: str, directory: Path) -> Any:
        self.downloads += 1
        assert self.go.wait(10)
        if self.failures:
            self.failures -= 1
            (directory / "half").write_bytes(b"x")
            raise Unavailable("the store is away")
        return super().download(artifact_id, directory)


class Setup:
    """A store with one adapter ``ft:1`` of tenant ``acme``."""

    def __init__(self, directory: Path) -> None:
        objects = MemoryObjectStore()
        self.artifacts = CountingStore(objects, directory / "blobs")
        self.registry = ObjectModelRegistry(objects)
        files = directory / "adapter"
        files.mkdir()
        (files / "adapter_config.json").write_text('{"r": 8}')
        artifact = self.artifacts.put_directory(files, kind="adapter", tenant="acme")
        self.model = self.registry.publish(
            PublishedModel("ft:1", "adapter", "acme", artifact.id, base_model="base-1", lora_rank=8)
        )
        self.cache = ModelCache(directory / "models", 10**6)
        self.source = RegistrySource(self.registry, self.artifacts, self.cache, HubModels(directory / "hub"))


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


async def test_files_are_downloaded_once(setup: Setup) -> None:
    setup.artifacts.go.clear()
    waiting = [asyncio.create_task(setup.source.files(setup.model)) for _ in range(5)]
    await asyncio.sleep(0)
    setup.artifacts.go.set()
    directories = set(await asyncio.gather(*waiting))
    directories.add(await setup.source.files(setup.model))
    assert len(directories) == 1
    assert (directories.pop() / "adapter_config.json").read_text() == '{"r": 8}'
    assert setup.artifacts.downloads == 1


async def test_a_failed_download_leaves_nothing_behind_and_is_repeated(setup: Setup, tmp_path: Path) -> None:
    setup.artifacts.failures = 1
    with pytest.raises(Unavailable):
        await setup.source.files(setup.model)
    assert [path for path in (tmp_path / "models").iterdir() if path.is_dir()] == []
    directory = await setup.source.files(setup.model)
    assert [path.name for path in directory.iterdir()] == ["adapter_config.json"]


async def test_names_are_resolved_for_their_tenant_with_close_matches(setup: Setup) -> None:
    assert (await setup.source.resolve("ft:1", "acme")).artifact_id == setup.model.artifact_id
    with pytest.raises(NotFound) as caught:
        await setup.source.resolve("ft:2", "acme")
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert caught.value.metadata["close_matches"] == "ft:1"
    assert "Close matches: ft:1" in caught.value.message
    with pytest.raises(NotFound) as hidden:
        await setup.source.resolve("ft:1", "other")
    assert "ft:1" not in hidden.value.metadata.get("close_matches", "")


async def test_a_model_without_files_says_so(setup: Setup) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await setup.source.files(PublishedModel("base-1", "base"))
    assert caught.value.reason == "MODEL_HAS_NO_FILES"


async def test_a_whole_model_can_be_named_by_its_artifact(setup: Setup, tmp_path: Path) -> None:
    files = tmp_path / "merged"
    files.mkdir()
    (files / "config.json").write_text("{}")
    merged = setup.artifacts.put_directory(files, kind="merged_model", tenant="acme")
    model = await setup.source.resolve(f"artifacts/{merged.id}", "acme")
    assert (model.kind, model.tenant) == ("whole", "acme")
    assert ((await setup.source.files(model)) / "config.json").is_file()
    with pytest.raises(NotFound) as hidden:
        await setup.source.resolve(f"artifacts/{merged.id}", "other")
    assert hidden.value.reason == "MODEL_NOT_FOUND"
    with pytest.raises(FailedPrecondition, match="kind adapter"):
        await setup.source.resolve(f"artifacts/{setup.model.artifact_id}", "acme")


async def test_a_hub_id_needs_no_entry_but_its_revision(setup: Setup) -> None:
    assert (await setup.source.resolve("org/model@c1", "acme")).kind == "base"
    with pytest.raises(NotFound, match="org/model@<commit>"):
        await setup.source.resolve("org/model", "acme")
    mirror = setup.registry.publish(PublishedModel("org/model@c2", "base", artifact_id=setup.model.artifact_id))
    assert await setup.source.resolve("org/model@c2", "acme") == mirror, "what was published under that name is meant"


async def test_a_path_is_refused_with_what_to_do_instead(setup: Setup) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await setup.source.resolve("file:///models/x", "acme")
    assert caught.value.reason == "MODEL_IS_A_PATH"
    assert "martlet merge" in caught.value.message
    assert "MARTLET_MODEL_DIR" in caught.value.message


async def test_without_a_registry_only_the_one_model_is_known() -> None:
    source = FixedSource("base-1")
    assert (await source.resolve("base-1", "default")).kind == "base"
    with pytest.raises(NotFound) as caught:
        await source.resolve("base-2", "default")
    assert caught.value.metadata["close_matches"] == "base-1"


async def test_a_registered_model_of_a_hub_has_its_chat_template(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = {"registered_source": "ms:org/name@v1", "chat_template": "a template"}
    setup.registry.publish(PublishedModel("mine", "whole", "acme", metadata=metadata))
    with FakeHub({"models/org/name/config.json": b"{}", "models/org/name/model.safetensors": b"w"}) as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        model = await setup.source.resolve("mine", "acme")
        files = await setup.source.files(model)
    assert {path.name: path.read_bytes() for path in files.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": b"w",
        "chat_template.jinja": b"a template",
    }
    with pytest.raises(NotFound):
        await setup.source.resolve("mine", "other")
