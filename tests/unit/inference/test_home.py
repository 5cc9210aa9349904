"""The model that the settings bring along: it stays loadable whatever else was loaded, and nobody need publish it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from martlet.inference.v1 import inference_pb2 as pb
from martlet.inference.v1 import inference_service_pb2 as service_pb
from martlet.inference.v1 import inference_service_pb2_grpc as service_grpc
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import MartletError, NotFound, Unavailable
from martlet_core.rpc.client import open_channel
from martlet_inference.engines.base import EngineState
from martlet_inference.home import HomeModel, HomeSource, home_model
from martlet_inference.hub import HubModels
from martlet_inference.model_source import FixedSource
from martlet_inference.replica import Replica
from martlet_inference.settings import InferenceSettings
from martlet_inference.testing import MemorySource, RecordingEngine, adapter, chat_request, wait_until


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def settings(**values: Any) -> InferenceSettings:
    return InferenceSettings(engine="echo", grpc_address="127.0.0.1:0", **values)


async def test_the_base_comes_back_after_a_swap_and_after_an_unload(directory: Path) -> None:
    """Nothing but the adapter and the merged model is published, as with a platform that was just started."""
    source = MemorySource()
    source.publish(PublishedModel("merged-1", "whole", artifact_id="a2"), adapter("ft:1", base="mine"))
    engine = RecordingEngine()
    replica = Replica(settings(model="mine", model_dir=directory), engine, source)
    await replica.start()
    channel = open_channel(f"127.0.0.1:{replica.port}")
    stub: Any = service_grpc.InferenceServiceStub(channel)

    async def answers(model: str) -> bool:
        return bool([message async for message in stub.CallOpenAI(chat_request(model))])

    try:
        await wait_until(lambda: engine.state is EngineState.READY)
        assert await answers("ft:1")
        await stub.LoadModel(service_pb.LoadModelRequest(model="merged-1"))
        assert await answers("merged-1")
        back = await stub.LoadModel(service_pb.LoadModelRequest(model="mine"))
        assert (back.name, back.state) == ("mine", pb.MODEL_STATE_READY)
        assert await answers("mine")
        assert await answers("ft:1")
        await stub.UnloadModel(service_pb.UnloadModelRequest(model="mine"))
        assert replica.pool.held() == []
        await stub.LoadModel(service_pb.LoadModelRequest(model="mine"))
        assert await answers("ft:1")
        assert engine.log == [
            *("start mine", "load ft:1", "start merged-1", "start mine", "load ft:1", "start mine", "load ft:1")
        ]
        assert "mine" not in source.resolved
    finally:
        await channel.close()
        await replica.stop()


async def test_the_gateway_is_told_of_it_loaded_or_not(directory: Path) -> None:
    replica = Replica(settings(model="mine", model_dir=directory), RecordingEngine(), MemorySource())
    described = await replica._describe("")
    assert list(described.home_models) == ["mine"]
    assert not described.models
    published = Replica(settings(model="published"), RecordingEngine(), MemorySource())
    assert not (await published._describe("")).home_models


def test_what_the_settings_bring_along(directory: Path) -> None:
    pinned = HomeModel("org/model@c1")
    assert home_model(settings(model="org/model", model_revision="c1")) == pinned
    assert home_model(settings(model="org/model@c1")) == pinned
    assert home_model(settings(model="org/model@c1", model_revision="c1")) == pinned
    assert home_model(settings(model="mine", model_dir=directory)) == HomeModel("mine", directory)
    both = settings(model="org/model", model_revision="c1", model_dir=directory)
    assert home_model(both) == HomeModel("org/model@c1", directory)
    path = settings(model=f"file://{directory}", model_dir=directory)
    assert home_model(path) == HomeModel(f"file://{directory}", directory), "adapters trained on a path can be served"
    for model in ("", "published", "ft:base:acme::1", "artifacts/abc"):
        assert home_model(settings(model=model)) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": "org/model"}, "pin its commit with MARTLET_MODEL_REVISION, or write org/model@<commit>"),
        ({"model": "org/model@c1", "model_revision": "c2"}, "contradict"),
        ({"model": "file:///models/x"}, "goes into MARTLET_MODEL_DIR"),
        ({"model": "", "model_dir": Path("/")}, "MARTLET_MODEL"),
    ],
)
def test_what_can_never_be_served_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(MartletError, match=said):
        home_model(settings(**values))


class Hub(ModuleType):
    """Stands in for the hub library, which lives in the engine's environment."""

    def __init__(self) -> None:
        super().__init__("huggingface_hub")
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.failure: Exception | None = None
        self.errors = ModuleType("huggingface_hub.errors")
        for name, base in (
            ("HfHubHTTPError", OSError),
            ("LocalEntryNotFoundError", OSError),
            ("RepositoryNotFoundError", OSError),
            ("RevisionNotFoundError", OSError),
        ):
            setattr(self.errors, name, type(name, (base,), {}))

    def snapshot_download(self, repository: str, **options: Any) -> str:
        self.asked.append((repository, options))
        if self.failure:
            raise self.failure
        directory = options["cache_dir"] / "snapshots" / options["revision"]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "model.safetensors").touch()
        return str(directory)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", made.errors)
    return made


async def test_a_hub_model_is_downloaded_at_its_commit(hub: Hub, tmp_path: Path) -> None:
    source = HomeSource(HomeModel("org/model@c1"), FixedSource("other"), HubModels(tmp_path))
    model = await source.resolve("org/model@c1", "acme")
    assert await source.resolve("org/model", "acme") == model
    assert await source.files(model) == tmp_path / "hub" / "snapshots" / "c1"
    [(repository, options)] = hub.asked
    assert (repository, options["revision"]) == ("org/model", "c1")
    assert not any(pattern.endswith(".py") or pattern == "*" for pattern in options["allow_patterns"])
    with pytest.raises(NotFound) as caught:
        await source.resolve("org/model@c2", "acme")
    assert caught.value.metadata["close_matches"].split(",")[0] == "org/model@c1"
    with pytest.raises(NotFound) as caught:
        await source.resolve("nonsense", "acme")
    assert "org/model" not in caught.value.message


async def test_errors_of_the_hub_say_what_to_do(hub: Hub, tmp_path: Path) -> None:
    models = HubModels(tmp_path)
    hub.failure = hub.errors.LocalEntryNotFoundError("offline")
    with pytest.raises(Unavailable) as away:
        await models.files("org/model@c1")
    assert away.value.reason == "HUB_UNREACHABLE"
    assert "HTTPS_PROXY" in away.value.message
    assert away.value.retry_after_seconds
    hub.failure = hub.errors.RevisionNotFoundError("none")
    with pytest.raises(NotFound, match="HF_TOKEN") as missing:
        await models.files("org/model@c1")
    assert missing.value.reason == "HUB_MODEL_NOT_FOUND"
    with pytest.raises(MartletError, match="org/model@commit"):
        await models.files("org/model")
