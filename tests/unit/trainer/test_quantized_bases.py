"""Which quantized base models train and merge: by their files alone, at submission, and as the README has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, InvalidArgument, MartletError
from martlet_core.models import ObjectModelRegistry
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_inputs.base_models.model_files import ModelFiles, files_in
from martlet_trainer import quantized_bases
from martlet_trainer.config import parse_merge_config, parse_training_config
from martlet_trainer.jobs import Submissions

README = Path(__file__).parents[3] / "services" / "trainer" / "README.md"
ROW = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}\n'
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}


@pytest.mark.parametrize(
    ("config", "files", "found"),
    [
        ({}, ("model.safetensors",), "None"),
        ({"quantization_config": None}, (), "None"),
        ({"quantization_config": NF4}, (), "bitsandbytes (nf4)"),
        ({"quantization_config": {"load_in_4bit": True}}, (), "bitsandbytes (fp4)"),
        ({"quantization_config": INT8}, (), "bitsandbytes (int8)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, (), "gptq"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, (), "awq"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}},
            (),
            "compressed-tensors (int-quantized)",
        ),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, (), "compressed-tensors"),
        ({"quantization_config": {"bits": 4}}, (), "unknown"),
        ({"quantization_config": "int4"}, (), "unknown"),
        ({}, ("model-q8_0.gguf", "config.json"), "gguf"),
        ({}, ("model.safetensors", "model-q8_0.gguf"), "None"),
        ({}, ("model.safetensors", "other/model.gguf"), "None"),
    ],
)
def test_what_a_models_files_say(config: dict[str, Any], files: tuple[str, ...], found: str) -> None:
    assert str(ModelFiles(frozenset(files), config).quantization) == found


def test_a_directory_is_read_through_links(tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    stored.mkdir()
    (stored / "config.json").write_text(json.dumps({"quantization_config": NF4}))
    (tmp_path / "link").symlink_to(stored)
    assert str(files_in(tmp_path / "link").quantization) == "bitsandbytes (nf4)"
    (stored / "config.json").write_text("[]")
    with pytest.raises(InvalidArgument, match="holds no JSON object"):
        files_in(stored)


class Kit:
    """A trainer's checks, and models by their files."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        objects = MemoryObjectStore()
        self.artifacts = ContentAddressedStore(objects, tmp_path / "cache")
        self.models = ObjectModelRegistry(objects)
        self.submissions = Submissions(
            self.artifacts,
            self.models,
            model_roots=(tmp_path,),
            models_dir=tmp_path / "models",
            scratch_dir=tmp_path / "scratch",
        )
        (tmp_path / "rows").mkdir()
        (tmp_path / "rows" / "train.jsonl").write_text(ROW)
        self.dataset = f"artifacts/{self.artifacts.put_directory(tmp_path / 'rows', kind='dataset', tenant='acme').id}"

    def directory(self, quantization: Any, files: tuple[str, ...] = ("model.safetensors",)) -> Path:
        directory = self.tmp_path / f"model-{len(list(self.tmp_path.iterdir()))}"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps({"quantization_config": quantization}))
        for name in files:
            (directory / name).write_text("weights")
        return directory

    def model(self, quantization: Any, **metadata: Any) -> str:
        directory = self.directory(quantization)
        artifact = self.artifacts.put_directory(directory, kind="quantized_model", tenant="acme", metadata=metadata)
        return f"artifacts/{artifact.id}"

    def published(self, name: str, artifact: str, base_model: str = "") -> str:
        kind = "adapter" if base_model else "whole"
        artifact_id = artifact.removeprefix("artifacts/")
        self.models.publish(PublishedModel(name, kind, "acme", artifact_id, base_model=base_model, lora_rank=8))
        return name

    def adapter(self, base_model: str) -> str:
        directory = self.directory(None, ())
        artifact = self.artifacts.put_directory(
            directory, kind="adapter", tenant="acme", metadata={"base_model": base_model}
        )
        return self.published("ft:base:acme:adapter:12345678", f"artifacts/{artifact.id}", base_model)

    async def train(self, base_model: str, **tuner: Any) -> None:
        values = {"base_model": base_model, "training_dataset": self.dataset, "tuner": tuner}
        await self.submissions.check_training("acme", parse_training_config(values))

    async def merge(self, adapter: str) -> None:
        await self.submissions.check_merge("acme", parse_merge_config({"adapter": adapter}))


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


@pytest.mark.parametrize("stored", [NF4, INT8])
async def test_adapters_on_bitsandbytes_are_taken_by_every_name(kit: Kit, stored: dict[str, Any]) -> None:
    artifact = kit.model(stored)
    name = kit.published("ft:base:acme:small:12345678", artifact)
    for base_model in (artifact, name, f"file://{kit.directory(stored)}", kit.adapter(name)):
        await kit.train(base_model)
        await kit.train(base_model, kind="qlora")


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "torchao", "hqq"])
async def test_other_methods_are_refused_by_every_name(kit: Kit, method: str) -> None:
    stored = {"quant_method": method}
    artifact = kit.model(stored, base_model="the-parent")
    name = kit.published("ft:base:acme:small:12345678", artifact)
    directory = f"file://{kit.directory(stored)}"
    adapter = kit.adapter(name)
    for base_model in (artifact, name, directory, adapter):
        for kind in ("lora", "qlora", "full"):
            if (base_model, kind) == (adapter, "full"):
                continue
            with pytest.raises(FailedPrecondition) as caught:
                await kit.train(base_model, kind=kind)
            error = caught.value
            assert error.reason == "BASE_IS_QUANTIZED"
            assert f"is quantized by {method}" in error.message
            parent = "the model that it was made from" if base_model == directory else "the-parent"
            assert (
                f"Train on {parent}, or on what the quantizer makes of that one by bnb-nf4 or bnb-int8" in error.message
            )
    assert f"{adapter} is an adapter on {name}, which is quantized" in error.message


async def test_a_gguf_file_is_no_base(kit: Kit) -> None:
    directory = kit.directory(None, ("model-q8_0.gguf",))
    with pytest.raises(FailedPrecondition, match="is quantized by gguf"):
        await kit.train(f"file://{directory}")


async def test_what_only_a_worker_can_see_passes(kit: Kit) -> None:
    await kit.train("org/model-gptq@main")


@pytest.mark.parametrize(
    ("stored", "tuner", "field", "words"),
    [
        (NF4, {"kind": "full"}, "spec.tuner.kind", r"quantized by bitsandbytes \(nf4\).*set it to lora, or train the-parent"),
        (INT8, {"kind": "full"}, "spec.tuner.kind", r"quantized by bitsandbytes \(int8\)"),
        (NF4, {"kind": "qlora", "quantization": "int8"}, "spec.tuner.quantization", "is int8, but .* stored as nf4; leave it out"),
        (INT8, {"kind": "qlora", "quantization": "nf4"}, "spec.tuner.quantization", "is nf4, but .* stored as int8"),
        (INT8, {"use_dora": True}, "spec.tuner.use_dora", "set it to false, or take an nf4 base"),
    ],
)  # fmt: skip
async def test_a_tuner_that_the_base_does_not_allow(
    kit: Kit, stored: dict[str, Any], tuner: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        await kit.train(kit.model(stored, base_model="the-parent"), **tuner)
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_merging_needs_weights_that_can_be_made_ordinary(kit: Kit) -> None:
    await kit.merge(kit.adapter(kit.model(NF4)))


async def test_merging_into_other_weights_is_refused(kit: Kit) -> None:
    base = kit.model({"quant_method": "awq"}, base_model="the-parent")
    with pytest.raises(FailedPrecondition) as caught:
        await kit.merge(kit.adapter(base))
    assert caught.value.reason == "BASE_IS_QUANTIZED"
    assert f"its base model {base} is quantized by awq" in caught.value.message
    assert "or train it on the-parent and merge the result" in caught.value.message


async def test_a_config_that_is_no_json_is_the_callers_mistake(kit: Kit) -> None:
    directory = kit.directory(None)
    (directory / "config.json").write_text("{")
    with pytest.raises(MartletError, match=r"spec\.base_model: its config\.json can't be read"):
        await kit.train(f"file://{directory}")


def test_the_readme_has_the_table() -> None:
    assert quantized_bases.table() in README.read_text()


def test_every_method_of_the_quantizer_has_its_row() -> None:
    source = Path(__file__).parents[3] / "services/quantizer/src/martlet_quantizer/methods/__init__.py"
    text = source.read_text()
    named = [method for rule in quantized_bases.RULES.values() for method in rule.made_by]
    assert len(named) == text.count("        Method(\n")
    assert all(f'"{method}", "' in text for method in named)
