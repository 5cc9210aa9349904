"""Bottlenecks: they begin as nothing, are trained alone, and come back from their files as they were; who can't take them says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.model_rules import check_plain_lora
from martlet_core.recipe import StopRequested
from martlet_trainer.config import parse_training_config
from martlet_trainer.recipes import merge
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, chat_rows, lay_out, training_spec
from martlet_trainer.testing_cases import ROLLOUT_OPTIONS, recipe_rows, save_tiny_encoder, save_tiny_llama
from martlet_trainer.training.heads import head_in
from martlet_trainer.training.models import load_model
from martlet_trainer.tuners.bottleneck import Bottleneck, find_places, insert, load_bottlenecks
from martlet_trainer.tuners.options import AdapterOptions
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel

MakeWorkdir = Callable[..., Path]
CPU = torch.device("cpu")
IDS = torch.tensor([[1, 9, 40, 41, 42, 43, 2, 1, 10, 44, 45]])
TUNER = {"kind": "adapter", "options": {"adapter_length": 16}}


def train(workdir: Path, stop: Any = lambda report: False, tuner: Any = TUNER, **changes: Any) -> tuple[Any, Recorder]:
    report, numbers = Recorder(), changes.pop("hyperparameters", {})
    spec = training_spec(hyperparameters={"max_steps": 5, "learning_rate": 1e-2, **numbers})
    spec["tuner"] = tuner
    return run({**spec, **changes}, workdir, report, lambda: stop(report)), report


def test_it_learns_and_its_files_hold_exactly_what_was_trained(make_workdir: MakeWorkdir) -> None:
    workdir = make_workdir("a", chat_rows(16), validation=chat_rows(4))
    result, report = train(workdir, hyperparameters={"max_steps": 30}, validation_dataset="artifacts/b")
    assert report.losses[-1] < report.losses[0] - 0.05
    output = result.outputs["model"]
    assert (output.kind, output.metadata["tuner"], output.metadata["base_model"]) == ("adapter", "adapter", "tiny")
    assert sorted(path.name for path in output.path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    written = json.loads((output.path / "adapter_config.json").read_text())
    parts = ("self_attn.o_proj", "mlp.down_proj")
    assert written["places"] == [f"model.layers.{layer}.{part}" for layer in (0, 1) for part in parts]
    assert (written["adapter_length"], written["adapter_act"]) == (16, "gelu")
    weights = load_file(output.path / "adapter_model.safetensors")
    assert len(weights) == 4 * len(written["places"])
    assert all(".bottleneck." in name for name in weights)
    base = load_model(workdir / "inputs/base_model", torch.float32, CPU).eval()
    with torch.no_grad():
        bare = base(IDS).logits
        tuned = load_bottlenecks(base, output.path)(IDS).logits
    assert (tuned - bare).norm() > 1e-3 * bare.norm()
    again = make_workdir("again", chat_rows(16), validation=chat_rows(4), adapter=output.path)
    numbers = {"max_steps": 1, "learning_rate": 1e-12}
    _, after = train(again, tuner={}, hyperparameters=numbers, validation_dataset="artifacts/b", base_model="ft:a")
    assert after.steps[1]["valid_loss"] == pytest.approx(report.steps[30]["valid_loss"], abs=1e-5)


def test_it_begins_as_the_base_model(make_workdir: MakeWorkdir) -> None:
    rows = chat_rows(8)
    _, report = train(make_workdir("a", rows), hyperparameters={"max_steps": 1})
    _, plain = train(make_workdir("b", rows), tuner={}, hyperparameters={"max_steps": 1})
    assert report.losses == pytest.approx(plain.losses, rel=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_goes_on_as_if_never_stopped(make_workdir: MakeWorkdir, checkpointing: bool) -> None:
    rows, numbers = chat_rows(12), {"gradient_checkpointing": checkpointing}
    whole, _ = train(make_workdir("whole", rows), hyperparameters=numbers)
    first = make_workdir("first", rows)
    with pytest.raises(StopRequested):
        train(first, lambda report: len(report.losses) >= 3, hyperparameters=numbers)
    resume = first / "checkpoints" / "step-3"
    resumed, _ = train(make_workdir("second", rows, resume=resume), hyperparameters=numbers)
    files = [result.outputs["model"].path / "adapter_model.safetensors" for result in (whole, resumed)]
    assert len({path.read_bytes() for path in files}) == 1


def test_a_training_goes_on_from_it(make_workdir: MakeWorkdir) -> None:
    """With its options, whatever is left open; what contradicts them is refused."""
    rows = chat_rows(8)
    adapter = train(make_workdir("a", rows))[0].outputs["model"].path
    workdir = make_workdir("b", rows, adapter=adapter)
    result, _ = train(workdir, tuner={}, base_model="ft:a", adapter_base_model="other/name")
    assert result.values["resolved_config"]["tuner"]["options"] == {"adapter_length": 16, "adapter_act": "gelu"}
    assert result.outputs["model"].metadata["base_model"] == "other/name"
    for tuner, message in (
        ({"kind": "lora"}, r"tuner\.kind: is lora, but ft:a is an adapter of kind adapter; leave it out"),
        ({"kind": "adapter", "options": {"adapter_length": 8}}, r"adapter_length: is 8, but ft:a has 16"),
        ({"lora_rank": 4}, r"tuner\.lora_rank: is LoRA's, and tuner\.kind is adapter"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            train(workdir, tuner=tuner, base_model="ft:a")


def test_weights_of_another_model_are_refused(make_workdir: MakeWorkdir, tmp_path: Path) -> None:
    adapter = train(make_workdir("a", chat_rows(8)), hyperparameters={"max_steps": 1})[0].outputs["model"].path
    wider = load_model(save_tiny_llama(tmp_path / "wider", hidden_size=96), torch.float32, CPU)
    with pytest.raises(FailedPrecondition, match=r"don't fit this job: model\.layers\.0"):
        load_bottlenecks(wider, adapter)
    shorter = load_model(save_tiny_llama(tmp_path / "shorter", num_hidden_layers=1), torch.float32, CPU)
    with pytest.raises(FailedPrecondition, match=r"has a place model\.layers\.1\.self_attn\.o_proj, which the model"):
        load_bottlenecks(shorter, adapter)


def test_a_divergence_is_measured_from_the_model_without_it(make_workdir: MakeWorkdir) -> None:
    workdir = make_workdir("a", recipe_rows("grpo", 8))
    options = {**ROLLOUT_OPTIONS, "beta": 0.1}
    _, report = train(workdir, recipe="grpo", recipe_options=options, hyperparameters={"max_steps": 4})
    assert report.steps[1]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert report.steps[4]["kl"] > 1e-6


def test_an_encoder_with_a_new_head(tmp_path: Path) -> None:
    encoder = save_tiny_encoder(tmp_path / "encoder")
    workdir = lay_out(tmp_path / "a", encoder, recipe_rows("sequence_classification", 16))
    result, _ = train(workdir, recipe="sequence_classification")
    output = result.outputs["model"].path
    names = load_file(output / "adapter_model.safetensors").keys()
    assert {"classifier.weight", "bert.pooler.dense.weight"} < names
    head = head_in(output)
    model = load_bottlenecks(load_model(encoder, torch.float32, CPU, head=head), output)
    assert torch.equal(model.classifier.weight, load_file(output / "adapter_model.safetensors")["classifier.weight"])


_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 300,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("family", "changes", "wanted"),
    [
        ("qwen3", {"head_dim": 16}, ("self_attn.o_proj", "mlp.down_proj")),
        ("gpt_neox", {}, ("attention.dense", "mlp.dense_4h_to_h")),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, ("self_attn.out_proj", "fc2")),
        ("qwen2_moe", {"num_experts": 4, "moe_intermediate_size": 16}, ("self_attn.o_proj", "mlp")),
        ("bert", {"is_decoder": True}, ("attention.output.dense", "output.dense")),
        ("modernbert", {"global_attn_every_n_layers": 1, "pad_token_id": 0}, ("attn.Wo", "mlp.Wo")),
    ],
)
def test_places_of_other_families(
    tmp_path: Path, family: str, changes: dict[str, Any], wanted: tuple[str, ...]
) -> None:
    """Of parts with experts, what all of them give together; where norms stand behind, before these."""
    config = AutoConfig.for_model(family, **{**_SIZES, **changes})
    model: Any = AutoModel.from_config(config)
    places = find_places(model)
    assert len(places) == 4
    assert all(place.endswith(f"0.{part}") for place, part in zip(places, wanted, strict=False))
    with torch.no_grad():
        before = model.eval()(IDS).last_hidden_state
        insert(model, places, AdapterOptions(adapter_length=4))
        assert torch.equal(model(IDS).last_hidden_state, before)
        for module in model.modules():
            if isinstance(module, Bottleneck):
                nn.init.normal_(module.up.weight)
        assert not torch.allclose(model(IDS).last_hidden_state, before, atol=1e-3)


def test_layers_without_a_place_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleDict({"odd": nn.Linear(32, 32)}) for _ in range(2))
            self.config = AutoConfig.for_model("llama", **_SIZES)

    with pytest.raises(InvalidArgument, match="no place for it was found in this model's layers; use lora"):
        find_places(Odd())


def test_a_model_that_computes_past_a_place_is_refused(
    make_workdir: MakeWorkdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    def past(self: Any, x: torch.Tensor) -> torch.Tensor:
        inner = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return nn.functional.linear(inner, self.down_proj.weight)

    monkeypatch.setattr(LlamaMLP, "forward", past)
    with pytest.raises(InvalidArgument, match=r"computes past model\.layers\.0\.mlp\.down_proj; use lora"):
        train(make_workdir("a", chat_rows(4)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuner": {"target_modules": ["q_proj"]}}, r"tuner\.target_modules: has no meaning .* places in every layer"),
        ({"tuner": {"modules_to_save": ["norm"]}}, r"tuner\.modules_to_save: has no meaning"),
        ({"tuner": {"lora_rank": 4}}, r"lora_rank: is LoRA's, .* under tuner\.options: adapter_length, adapter_act"),
        ({"tuner": {"options": {"adapter_act": "sigh"}}}, r"tuner\.options\.adapter_act"),
        ({"tuner": {"options": {"r": 4}}}, r"tuner\.options\.r"),
        (
            {"resources": {"device_count": 2, "sharding": "zero2"}},
            r"resources\.sharding: works with plain lora and full",
        ),
    ],
)
def test_what_cannot_go_with_it_is_refused_at_submission(changes: dict[str, Any], message: str) -> None:
    values = {"base_model": "m", "training_dataset": "artifacts/a", **changes}
    values["tuner"] = {"kind": "adapter", **changes.get("tuner", {})}
    with pytest.raises(InvalidArgument, match=message):
        parse_training_config(values)


def test_it_is_neither_merged_nor_served(make_workdir: MakeWorkdir) -> None:
    workdir = make_workdir("a", chat_rows(8))
    adapter = train(workdir, hyperparameters={"max_steps": 1})[0].outputs["model"].path
    inputs = workdir.parent / "merge" / "inputs"
    inputs.mkdir(parents=True)
    (inputs / "base_model").symlink_to(workdir / "inputs" / "base_model")
    (inputs / "adapter").symlink_to(adapter)
    with pytest.raises(FailedPrecondition, match=r"is of kind adapter, maps with an activation between them, which no"):
        merge.run({"adapter": "ft:a", "base_model": "tiny"}, inputs.parent, Recorder(), lambda: False)
    model = PublishedModel("ft:a", "adapter", "acme", "a1", base_model="base", metadata={"tuner": "adapter"})
    for facts in (model.metadata, json.loads((adapter / "adapter_config.json").read_text())):
        with pytest.raises(FailedPrecondition, match=r"is bottlenecks .* train an adapter of kind lora") as caught:
            check_plain_lora(model, facts)
        assert caught.value.reason == "ADAPTER_NOT_SERVED"


def test_it_can_be_a_teacher(make_workdir: MakeWorkdir) -> None:
    """What learns from the model with bottlenecks comes nearer to that, and not to the model without."""
    rows = recipe_rows("distill", 8)
    first = make_workdir("a", rows)
    adapter = train(first, hyperparameters={"max_steps": 20})[0].outputs["model"].path
    workdir = make_workdir("b", rows, teacher=first / "inputs" / "base_model")
    (workdir / "inputs" / "teacher_adapter").symlink_to(adapter)
    options = {"teacher_model": "ft:a", "lmbda": 0.0}
    _, report = train(workdir, recipe="distill", recipe_options=options, hyperparameters={"max_steps": 8})
    assert report.losses[0] > 0.01
    assert report.losses[-1] < report.losses[0]
