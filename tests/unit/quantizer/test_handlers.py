"""What a worker makes of a quantization: on stores in memory, without an ML library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import Artifact, PublishedModel
from martlet_core.jobs import Job
from martlet_core.models import ObjectModelRegistry
from martlet_core.stores import Stores
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_inputs.base_models.locate import ModelDirs
from martlet_quantizer.handlers import QuantizationHandler
from martlet_quantizer.serving_check import ServingCheck

#: A gateway that would be asked.
SERVING = ServingCheck("http://127.0.0.1:9/v1", "internal")


class Kit:
    """Stores with a tenant's models in them, and a handler."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        objects = MemoryObjectStore()
        artifacts = ContentAddressedStore(objects, tmp_path / "cache")
        self.stores = Stores(MemoryJobStore(), objects, artifacts, ObjectModelRegistry(objects))
        self.handler = QuantizationHandler(self.stores, ModelDirs(tmp_path, tmp_path, ()), {}, SERVING)

    def artifact(self, kind: str, **metadata: Any) -> Artifact:
        directory = self._tmp_path / f"{kind}-{len(list(self._tmp_path.iterdir()))}"
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        return self.stores.artifacts.put_directory(directory, kind=kind, tenant="acme", metadata=metadata)

    def job(self, model: str, **result: Any) -> Job:
        spec = {"model": model, "method": "bnb-nf4"}
        return Job("0" * 12 + "12345678", "quantizer", "quantization", "acme", spec, "q", result=result)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("task", ["embedding", "sequence_classification", None])
def test_a_quantized_model_is_known_for_what_its_base_was_made_for(kit: Kit, task: str | None, published: bool) -> None:
    facts = {"task": task} if task else {}
    base = kit.artifact("merged_model", **facts)
    name = f"artifacts/{base.id}"
    if published:
        name = "ft:base:acme::12345678"
        kit.stores.models.publish(PublishedModel(name, "whole", "acme", base.id, metadata=facts))
    assert kit.handler.prepare(kit.job(name)).config["task"] == task
    made = kit.artifact("quantized_model", **facts)
    report = kit.artifact("report")
    finished = kit.handler.finish(kit.job(name), {}, {"model": made, "report": report})
    again = kit.handler.published_model(kit.job(name, model_artifact=f"artifacts/{made.id}"))
    assert finished.model == again
    assert finished.model is not None
    assert finished.model.metadata == facts


def test_a_base_of_the_catalogue_says_nothing(kit: Kit) -> None:
    assert kit.handler.prepare(kit.job("smollm2-135m-instruct")).config["task"] is None


def test_a_model_that_writes_no_text_is_asked_nothing(kit: Kit) -> None:
    base = kit.artifact("merged_model", task="embedding")
    made = kit.artifact("quantized_model", task="embedding")
    job = kit.job(f"artifacts/{base.id}")
    finished = kit.handler.finish(job, {}, {"model": made})
    [row] = kit.handler.try_out(job, finished, lambda: False).result["engines"]
    assert (row["loaded"], row["detail"]) == (
        False,
        "not tried: it is for embedding, and those that write text alone are asked",
    )
