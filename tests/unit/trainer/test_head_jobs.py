"""What is checked at submission of recipes whose models end in a head, and what is published of them: without an ML library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import Artifact
from martlet_core.errors import InvalidArgument
from martlet_core.jobs import Job
from martlet_core.models import ObjectModelRegistry
from martlet_core.stores import Stores
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_inputs.base_models.locate import ModelDirs
from martlet_trainer.config import parse_training_config
from martlet_trainer.handlers import MergeHandler, TrainingHandler
from martlet_trainer.jobs import Submissions
from martlet_trainer.naming import MERGE, TRAINING

BASE = "smollm2-135m-instruct"


class Kit:
    """Stores with a tenant's things in them, and who looks at them."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        objects = MemoryObjectStore()
        self.artifacts = ContentAddressedStore(objects, tmp_path / "cache")
        stores = Stores(MemoryJobStore(), objects, self.artifacts, ObjectModelRegistry(objects))
        models, self.root = tmp_path / "models", tmp_path / "allowed"
        self.submissions = Submissions(
            self.artifacts,
            stores.models,
            model_roots=(self.root,),
            models_dir=models,
            scratch_dir=tmp_path / "scratch",
        )
        dirs = ModelDirs(models, tmp_path / "hub", (self.root,))
        self.training, self.merge = TrainingHandler(stores, dirs), MergeHandler(stores, dirs)

    def artifact(self, kind: str, text: str, **metadata: Any) -> Artifact:
        directory = self._tmp_path / f"{kind}-{len(list(self._tmp_path.iterdir()))}"
        directory.mkdir()
        (directory / "train.jsonl").write_text(text)
        return self.artifacts.put_directory(directory, kind=kind, tenant="acme", metadata=metadata)

    async def check(self, **spec: Any) -> None:
        await self.submissions.check_training("acme", parse_training_config({"base_model": BASE, **spec}))


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def rows(kit: Kit, *labels: Any) -> str:
    lines = (json.dumps({"text": "a", "label": label}) + "\n" for label in labels)
    return f"artifacts/{kit.artifact('dataset', ''.join(lines)).id}"


def job(kind: str, **spec: Any) -> Job:
    values = {"base_model": BASE, "training_dataset": "artifacts/a"} if kind == TRAINING else {}
    return Job("0123456789abcdefghjk", "trainer", kind, "acme", {**values, **spec}, "trainer")


def classifier(kit: Kit, *labels: Any, **changes: Any) -> dict[str, Any]:
    return {"recipe": "sequence_classification", "training_dataset": rows(kit, *labels), **changes}


async def test_a_classifier_passes(kit: Kit) -> None:
    await kit.check(**classifier(kit, "a", "b"))
    await kit.check(**classifier(kit, 0.5, 2, recipe_options={"problem_type": "regression"}))
    await kit.check(**classifier(kit, ["a"], [], ["b"], recipe_options={"problem_type": "multi_label_classification"}))


async def test_classes_of_the_validation_that_training_lacks_are_refused(kit: Kit) -> None:
    with pytest.raises(
        InvalidArgument, match="line 2: 'c' is none of the classes of the training rows: a, b"
    ) as caught:
        await kit.check(**classifier(kit, "a", "b", validation_dataset=rows(kit, "a", "c")))
    assert caught.value.violations[0].field == "spec.validation_dataset"


async def test_rows_are_judged_by_the_problem_at_hand(kit: Kit) -> None:
    """The same data set passes or not, whichever was asked first: what was found is kept for its kind alone."""
    numbers = rows(kit, 0.5, 1.5)
    asked = {"recipe": "sequence_classification", "training_dataset": numbers}
    await kit.check(**asked, recipe_options={"problem_type": "regression"})
    with pytest.raises(
        InvalidArgument, match=r"line 1: label: is 0\.5; rows with numbers need problem_type regression"
    ):
        await kit.check(**asked)


def local(kit: Kit, name: str, **config: Any) -> str:
    (kit.root / name).mkdir(parents=True)
    (kit.root / name / "config.json").write_text(json.dumps(config))
    return f"file://{kit.root}/{name}"


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bert", "architectures": ["BertModel"]},
        {"model_type": "modernbert"},
        {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
    ],
)
async def test_what_writes_no_text_is_no_base_of_a_recipe_that_does(kit: Kit, config: dict[str, Any]) -> None:
    base = local(kit, "base", **config)
    with pytest.raises(InvalidArgument, match="which writes no text, and recipe sft trains models that do") as caught:
        await kit.check(base_model=base, training_dataset="artifacts/a")
    assert caught.value.reason == "BASE_HAS_OTHER_HEAD"
    await kit.check(**classifier(kit, "a", "b", base_model=base))


async def test_a_head_on_a_quantized_base_is_refused(kit: Kit) -> None:
    base = local(kit, "base", model_type="llama", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(InvalidArgument, match=r"can't put a head; train .* with tuner\.kind qlora"):
        await kit.check(**classifier(kit, "a", "b", base_model=base))


@pytest.mark.parametrize(
    ("task", "recipe", "words"),
    [
        ({}, "sequence_classification", "is an adapter of a model that writes text"),
        ({"task": "reranker"}, "sequence_classification", "is an adapter of recipe reranker"),
        ({"task": "reranker"}, "sft", "is an adapter of recipe reranker"),
    ],
)
async def test_an_adapter_is_gone_on_with_by_its_own_recipe(kit: Kit, task: Any, recipe: str, words: str) -> None:
    adapter = kit.artifact("adapter", "", base_model=BASE, lora_rank=8, **task)
    text = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}\n'
    dataset = rows(kit, "a", "b") if recipe != "sft" else f"artifacts/{kit.artifact('dataset', text).id}"
    with pytest.raises(InvalidArgument, match=words):
        await kit.check(base_model=f"artifacts/{adapter.id}", recipe=recipe, training_dataset=dataset)


def test_what_is_published_says_what_it_is_for(kit: Kit) -> None:
    training = job(TRAINING, recipe="reranker")
    adapter = kit.artifact("adapter", "", base_model=BASE, task="reranker")
    model = kit.training.finish(training, {}, {"model": adapter}).model
    checkpoint = kit.training.checkpoint_model(training, {"step": 3, "artifact_id": adapter.id})
    merging = job(MERGE, adapter=f"artifacts/{adapter.id}")
    assert kit.merge.prepare(merging).config["task"] == "reranker"
    whole = kit.artifact("merged_model", "", base_model=BASE, task="reranker")
    merged = kit.merge.finish(merging, {}, {"model": whole}).model
    assert [found and found.metadata["task"] for found in (model, checkpoint, merged)] == ["reranker"] * 3
