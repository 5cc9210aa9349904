"""Adapters on a base that is kept quantized: made so for the training, or stored so beforehand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.recipe import StopRequested
from martlet_trainer import testing, testing_cases
from martlet_trainer.recipes import merge
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, chat_rows, training_spec
from martlet_trainer.training.models import dequantize, load_model
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Qwen3MoeConfig

MakeWorkdir = Callable[..., Path]
MADE = ["nf4", "int8"]
SCHEMES = [*MADE, "fp4"]

QUANTIZATIONS = {
    "nf4": BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    ),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
    "fp4": BitsAndBytesConfig(load_in_4bit=True),
}


def train(workdir: Path, **changes: Any) -> tuple[Any, Recorder]:
    report = Recorder()
    return run(training_spec(**changes), workdir, report, lambda: False), report


@pytest.fixture(scope="module")
def plain_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama whose layers are whole numbers of bitsandbytes' blocks wide, as those of real models are: only then are weights
    packed for inference.
    """
    return testing_cases.save_tiny_llama(tmp_path_factory.mktemp("plain"), dtype="bfloat16")


@pytest.fixture(scope="module")
def stored_dirs(plain_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model as the quantizer's methods bnb-nf4 and bnb-int8 store it, and as other programs may."""
    return {
        scheme: save_quantized(plain_dir, tmp_path_factory.mktemp(scheme), config)
        for scheme, config in QUANTIZATIONS.items()
    }


def save_quantized(source: Path, directory: Path, config: BitsAndBytesConfig) -> Path:
    """A model as the quantizer stores it."""
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, quantization_config=config, device_map={"": "cpu"}
    )
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(source).save_pretrained(directory)
    return directory


def lay_out(workdir: Path, base_model: Path, count: int = 20, **inputs: Any) -> Path:
    return testing.lay_out(workdir, base_model, chat_rows(count), **inputs)


@pytest.mark.parametrize("quantization", MADE)
def test_qlora_trains_on_a_quantized_base(make_workdir: MakeWorkdir, quantization: str) -> None:
    result, report = train(
        make_workdir("a", chat_rows(20)),
        tuner={"kind": "qlora", "quantization": quantization, "lora_rank": 8},
        hyperparameters={"max_steps": 15},
    )
    assert report.losses[-1] < report.losses[0] - 0.3
    assert result.outputs["model"].kind == "adapter"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_on_stored_weights_is_training_on_what_they_stand_for(
    stored_dirs: dict[str, Path], tmp_path: Path, scheme: str
) -> None:
    """Every gradient must find its way through the quantized layers: otherwise the losses part at the second step. Validation in between
    computes without gradients, which is when bitsandbytes would pack weights away.
    """
    stored = stored_dirs[scheme]
    ordinary = tmp_path / "ordinary"
    dequantize(load_model(stored, torch.float32, torch.device("cpu"))).save_pretrained(ordinary)
    AutoTokenizer.from_pretrained(stored).save_pretrained(ordinary)
    assert "quantization_config" not in json.loads((ordinary / "config.json").read_text())
    losses, norms = {}, {}
    for name, base in (("stored", stored), ("ordinary", ordinary)):
        workdir = lay_out(tmp_path / name, base, validation=chat_rows(4, start=30))
        numbers = {"max_steps": 10, "eval_steps": 2}
        _, report = train(workdir, tuner={"lora_rank": 8}, hyperparameters=numbers, validation_dataset="artifacts/b")
        losses[name] = report.losses
        norms[name] = [report.steps[step]["grad_norm"] for step in range(1, 11)]
    assert losses["stored"][-1] < losses["stored"][0] - 0.3
    assert losses["stored"] == pytest.approx(losses["ordinary"], rel=0.02)
    assert norms["stored"] == pytest.approx(norms["ordinary"], rel=0.05)


@pytest.mark.parametrize("scheme", MADE)
def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(
    stored_dirs: dict[str, Path], tmp_path: Path, scheme: str
) -> None:
    changes: dict[str, Any] = {
        "hyperparameters": {"max_steps": 8, "eval_steps": 3},
        "tuner": {"lora_dropout": 0.1},
        "base_model": "ft:tiny:acme:small:12345678",
        "validation_dataset": "artifacts/b",
    }
    validation = chat_rows(4, start=30)
    whole, unbroken = train(lay_out(tmp_path / "whole", stored_dirs[scheme], validation=validation), **changes)
    stopped = Recorder()
    with pytest.raises(StopRequested):
        run(
            training_spec(**changes),
            lay_out(tmp_path / "stopped", stored_dirs[scheme], validation=validation),
            stopped,
            lambda: len(stopped.losses) >= 4,
        )
    checkpoint = stopped.checkpoints[-1][0]
    resumed_dir = lay_out(tmp_path / "resumed", stored_dirs[scheme], validation=validation, resume=checkpoint)
    resumed, went_on = train(resumed_dir, **changes)
    assert sorted(went_on.steps) == list(range(5, 9))
    assert stopped.losses + went_on.losses == unbroken.losses
    weights = [r.outputs["model"].path / "adapter_model.safetensors" for r in (whole, resumed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    for directory in (checkpoint, resumed.outputs["model"].path):
        written = json.loads((directory / "adapter_config.json").read_text())
        assert written["base_model_name_or_path"] == "ft:tiny:acme:small:12345678"
    assert resumed.outputs["model"].metadata["base_model"] == "ft:tiny:acme:small:12345678"


def test_the_arithmetic_is_the_trainings_own_and_not_the_stored_one(stored_dirs: dict[str, Path]) -> None:
    """The quantizer stores bfloat16 as the type to compute in; on a CPU without AMX that is several times slower than float32."""
    model = load_model(stored_dirs["nf4"], torch.float32, torch.device("cpu")).eval()
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = layer(x)
        wanted = x @ dequantize(model).model.layers[0].mlp.up_proj.weight.t()
    assert (found - wanted).norm() / wanted.norm() < 5e-3
    assert not torch.equal(found, found.bfloat16().float()), "it was rounded to the stored type"


def test_a_base_quantized_beforehand_trains_as_it_is(stored_dirs: dict[str, Path], tmp_path: Path) -> None:
    workdir = lay_out(tmp_path / "a", stored_dirs["int8"])
    result, report = train(workdir, tuner={"kind": "qlora"}, hyperparameters={"max_steps": 1})
    assert result.values["resolved_config"]["tuner"]["quantization"] == "int8"
    assert "the base model is quantized by bitsandbytes (int8), and stays so" in report.lines
    with pytest.raises(InvalidArgument, match=r"is quantized by bitsandbytes .* set it to lora"):
        train(workdir, tuner={"kind": "full"})
    with pytest.raises(InvalidArgument, match="is nf4, but the base model is stored as int8; leave it out"):
        train(workdir, tuner={"kind": "qlora", "quantization": "nf4"})


def test_what_was_found_on_the_hub_is_judged_before_anything_is_loaded(plain_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "gptq"
    base.mkdir()
    config = json.loads((plain_dir / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (base / "config.json").write_text(json.dumps(config))
    report = Recorder()
    with pytest.raises(FailedPrecondition, match=r"org/model@main is quantized by gptq.* bnb-nf4 or bnb-int8"):
        run(training_spec(base_model="org/model@main"), lay_out(tmp_path / "a", base), report, lambda: False)
    assert report.phases == []


@pytest.mark.parametrize("scheme", MADE)
def test_an_adapter_merges_into_what_the_stored_weights_stand_for(
    stored_dirs: dict[str, Path], tmp_path: Path, scheme: str
) -> None:
    trained, _ = train(lay_out(tmp_path / "a", stored_dirs[scheme]), hyperparameters={"max_steps": 10})
    inputs = tmp_path / "merge" / "inputs"
    inputs.mkdir(parents=True)
    (inputs / "base_model").symlink_to(stored_dirs[scheme])
    (inputs / "adapter").symlink_to(trained.outputs["model"].path)
    report = Recorder()
    values = {"adapter": "ft:a", "base_model": "ft:tiny:acme:small:12345678"}
    result = merge.run(values, tmp_path / "merge", report, lambda: False)
    output = result.outputs["model"]
    config = json.loads((output.path / "config.json").read_text())
    assert "quantization_config" not in config
    assert (output.metadata["precision"], config["dtype"]) == ("bfloat16", "bfloat16")
    assert any("its weights are made ordinary ones again" in line for line in report.lines)
    assert result.values["top1_agreement"] > 0.9
    ids = torch.tensor([[1, 9, 40, 41, 42, 43, 2, 1, 10, 44, 45]])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(output.path, dtype=torch.float32)(ids).logits
        base = AutoModelForCausalLM.from_pretrained(stored_dirs[scheme], dtype=torch.float32)
        unmerged = PeftModel.from_pretrained(base, inputs / "adapter").eval()(ids).logits
        bare = load_model(stored_dirs[scheme], torch.float32, torch.device("cpu"))(ids).logits
    assert (merged - unmerged).norm() < 0.15 * (bare - unmerged).norm()


@pytest.mark.parametrize("scheme", MADE)
def test_a_mixture_whose_experts_are_stored_in_16_bit_trains(tmp_path: Path, scheme: str) -> None:
    """transformers reads a mixture's experts in the type that they were stored with, whatever it is asked for: they would compute in that."""
    config = Qwen3MoeConfig(
        vocab_size=len(testing.byte_tokenizer()),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    plain = testing.save_random_model(tmp_path / "plain", config, dtype="bfloat16")
    stored = save_quantized(plain, tmp_path / "stored", QUANTIZATIONS[scheme])
    model = load_model(stored, torch.float32, torch.device("cpu"))
    assert {p.dtype for p in model.parameters()} == {torch.float32, torch.int8 if scheme == "int8" else torch.uint8}
    workdir = lay_out(tmp_path / "a", stored, validation=chat_rows(4, start=30))
    numbers = {"max_steps": 10, "eval_steps": 5}
    _, report = train(workdir, tuner={"lora_rank": 8}, hyperparameters=numbers, validation_dataset="artifacts/b")
    assert report.losses[-1] < report.losses[0] - 0.2


def test_a_model_that_lacks_weights_is_refused(plain_dir: Path, tmp_path: Path) -> None:
    """transformers would invent them and go on."""
    base = tmp_path / "base"
    shutil.copytree(plain_dir, base)
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FailedPrecondition, match=r"lack 1 of the model's weights.*layers\.1\.mlp\.up_proj\.weight"):
        train(lay_out(tmp_path / "a", base))
