"""Full training of a part of the weights: frozen shares and names, and layers by turns (LISA, BAdam)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from martlet_core.errors import InvalidArgument
from martlet_core.recipe import StopRequested
from martlet_trainer.config import parse_training_config
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, chat_rows, training_spec
from martlet_trainer.testing_cases import SMALL_OPTIONS
from martlet_trainer.tuners.blocks import _Turns, badam_choice, lisa_choice
from martlet_trainer.tuners.options import BadamOptions, LisaOptions
from safetensors.torch import load_file

MakeWorkdir = Callable[..., Path]


def train(kind: str, workdir: Path, options: dict[str, Any], stop: Any = lambda report: False, **numbers: Any) -> Any:
    report = Recorder()
    spec = training_spec(hyperparameters={"max_steps": 5, "learning_rate": 3e-3, **numbers})
    spec["tuner"] = {"kind": kind, "options": options}
    return run(spec, workdir, report, lambda: stop(report)), report


def moved(workdir: Path, result: Any) -> set[str]:
    """Names of the weights that differ from the base model's."""
    before = load_file(workdir / "inputs/base_model/model.safetensors")
    after = load_file(result.outputs["model"].path / "model.safetensors")
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"freeze_parameters": ["model.layers"]}, lambda name: "layers" not in name),
        ({"freeze_parameters": ["model"], "trainable_parameters": ["model.layers.1"]}, lambda name: "layers.1" in name),
        ({"freeze_parameters_regex": "proj"}, lambda name: "proj" not in name),
        (
            {"freeze_parameters_regex": ".", "trainable_parameters_regex": "q_proj|norm"},
            lambda name: "q_proj" in name or "norm" in name,
        ),
    ],
)
def test_only_what_is_not_frozen_moves(make_workdir: MakeWorkdir, options: dict[str, Any], wanted: Any) -> None:
    workdir = make_workdir("a", chat_rows(8))
    result, _ = train("full", workdir, options)
    names = load_file(workdir / "inputs/base_model/model.safetensors")
    assert moved(workdir, result) == {name for name in names if wanted(name)}
    assert result.outputs["model"].metadata["tuner"] == "full"


def test_a_share_is_counted_from_the_input(make_workdir: MakeWorkdir) -> None:
    workdir = make_workdir("a", chat_rows(8))
    result, report = train("full", workdir, {"freeze_parameters_ratio": 0.6})
    weights = load_file(workdir / "inputs/base_model/model.safetensors")
    frozen = sum(weights[name].numel() for name in weights.keys() - moved(workdir, result))
    whole = sum(weight.numel() for weight in weights.values())
    assert 0.4 * whole < frozen <= 0.6 * whole
    assert "model.embed_tokens.weight" not in moved(workdir, result)
    assert any(f"training {whole - frozen:,} of {whole:,} parameters" in line for line in report.lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_parameters": ["modle"]}, r"freeze_parameters: finds none .* called model\.embed_tokens"),
        ({"freeze_parameters": [""]}, r"tuner\.options: leaves no weights to train"),
        ({"trainable_parameters_regex": "xyz"}, r"trainable_parameters_regex: finds none"),
    ],
)
def test_names_that_find_nothing_are_refused(make_workdir: MakeWorkdir, options: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        train("full", make_workdir("a", chat_rows(4)), options)


@pytest.mark.parametrize("kind", ["lisa", "badam"])
def test_layers_by_turns_go_on_as_if_never_stopped(make_workdir: MakeWorkdir, kind: str) -> None:
    """Stopped just before a turn and in its middle."""
    rows, options = chat_rows(12), SMALL_OPTIONS[kind]
    whole, _ = train(kind, make_workdir("whole", rows), options, max_steps=8)
    for stop in (3, 5):
        first = make_workdir(f"first-{stop}", rows)
        with pytest.raises(StopRequested):
            train(kind, first, options, lambda report, stop=stop: len(report.losses) >= stop, max_steps=8)
        resume = first / "checkpoints" / f"step-{stop}"
        resumed, _ = train(kind, make_workdir(f"second-{stop}", rows, resume=resume), options, max_steps=8)
        files = [result.outputs["model"].path / "model.safetensors" for result in (whole, resumed)]
        assert len({path.read_bytes() for path in files}) == 1


def test_each_step_moves_the_layers_whose_turn_it_is(make_workdir: MakeWorkdir) -> None:
    rows = chat_rows(8)
    workdir = make_workdir("a", rows)
    result, _ = train("badam", workdir, {"switch_interval": 5, "switch_mode": "descending"})
    assert {name.split(".")[2] for name in moved(workdir, result)} == {"1"}
    workdir = make_workdir("b", rows)
    result, _ = train("lisa", workdir, {"activated_layers": 1, "step_interval": 5})
    names = moved(workdir, result)
    assert {"model.embed_tokens.weight", "model.norm.weight"} < names
    assert len({name.split(".")[2] for name in names if "layers" in name}) == 1


def test_a_closed_layer_takes_no_memory_of_the_optimizer() -> None:
    layers = torch.nn.ModuleList(torch.nn.Linear(2, 2, bias=False) for _ in range(3))
    optimizer = torch.optim.AdamW(layers.parameters(), lr=0.1)
    turns = _Turns(layers, badam_choice(3, BadamOptions(), seed=1), interval=2)
    turns.begin(6, optimizer)
    for step in range(6):
        turns.before_step(step)
        before = [layer.weight.detach().clone() for layer in layers]
        x = torch.ones(1, 2)
        for layer in layers:
            x = layer(x)
        x.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        changed = [not torch.equal(old, layer.weight) for old, layer in zip(before, layers, strict=True)]
        assert changed == [index == step // 2 for index in range(3)]
        assert list(optimizer.state) == [layers[step // 2].weight]
        assert int(optimizer.state[layers[step // 2].weight]["step"]) == step % 2 + 1


def test_choices() -> None:
    drawn = [lisa_choice(9, LisaOptions(activated_layers=3), seed=1)(period) for period in range(40)]
    assert all(len(set(chosen)) == 3 for chosen in drawn)
    assert {layer for chosen in drawn for layer in chosen} == set(range(9))
    each = badam_choice(4, BadamOptions(switch_mode="random"), seed=1)
    turns = [[each(4 * turn + place)[0] for place in range(4)] for turn in range(8)]
    assert all(sorted(turn) == [0, 1, 2, 3] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1
    with pytest.raises(InvalidArgument, match=r"activated_layers: is 3, but the model has 2 layers"):
        lisa_choice(2, LisaOptions(activated_layers=3), seed=1)


@pytest.mark.parametrize("kind", ["lisa", "badam"])
def test_what_cannot_go_with_turns_is_refused_at_submission(kind: str) -> None:
    values: dict[str, Any] = {"base_model": "m", "training_dataset": "artifacts/a"}
    with pytest.raises(InvalidArgument, match=r"device_count: must be 1 with tuner\.kind"):
        parse_training_config({**values, "tuner": {"kind": kind}, "resources": {"device_count": 2}})
    with pytest.raises(InvalidArgument, match=rf"lora_rank: has no meaning with tuner\.kind {kind}"):
        parse_training_config({**values, "tuner": {"kind": kind, "lora_rank": 4}})
    with pytest.raises(InvalidArgument, match=r"lora_plus_ratio: is LoRA's"):
        parse_training_config({**values, "tuner": {"kind": kind}, "hyperparameters": {"lora_plus_ratio": 4}})


@pytest.mark.parametrize(
    "changes",
    [
        {"tuner": {"kind": "adalora"}},
        {"tuner": {"kind": "prompt_tuning"}},
        {"tuner": {"kind": "longlora"}},
        {"tuner": {"init_weights": "lora_ga"}},
        {"tuner": {"kind": "full"}, "hyperparameters": {"optimizer": "galore_adamw"}},
    ],
)
def test_what_needs_whole_weights_is_refused_with_sharding(changes: dict[str, Any]) -> None:
    values = {
        "base_model": "m",
        "training_dataset": "artifacts/a",
        "resources": {"device_count": 2, "sharding": "zero3"},
    }
    with pytest.raises(
        InvalidArgument, match=r"resources\.sharding: (isn't there for|works with plain lora and full alone)"
    ):
        parse_training_config({**values, **changes})
