"""Weights, gradients and optimizer spread over two processes (gloo on the CPU): the numbers of one process, checkpoints that anyone can read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from martlet_core.errors import InvalidArgument
from martlet_core.recipe import StopRequested
from martlet_trainer.config import parse_training_config
from martlet_trainer.recipes.training import run
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

MakeWorkdir = Callable[..., Path]
NUMBERS = {"max_steps": 6, "per_device_batch_size": 8, "eval_steps": 2, "early_stopping_patience": 5}


def never() -> bool:
    return False


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(directory.glob("*.safetensors")) for name, t in load_file(file).items()}


RATES = {"full": 1e-3, "lora": 1e-2}


def alone_and_shared(
    kit: SimpleNamespace, make_workdir: MakeWorkdir, tuner: str, kind: str
) -> tuple[dict[str, Any], list[Any]]:
    """A training by one process, and by two with a share each, which must not differ but for rounding. Returns the latter's spec and rows.

    22 rows: at an epoch's end, and in validation, one process has fewer than the other.
    """
    rows = kit.chat_rows(22)
    same: dict[str, Any] = {"tuner": {"kind": tuner}, "data": {"validation_split": 0.2}}
    numbers = {**NUMBERS, "learning_rate": RATES[tuner]}
    alone, shared = kit.Recorder(), kit.Recorder()
    one = run(kit.spec(**same, hyperparameters=numbers), make_workdir("one", rows), alone, never)
    numbers |= {"per_device_batch_size": 2, "gradient_accumulation_steps": 2}
    spec = kit.spec(**same, hyperparameters=numbers, resources={"device_count": 2, "sharding": kind})
    two = run(spec, make_workdir("two", rows), shared, never)
    assert shared.losses == pytest.approx(alone.losses, abs=1e-4)
    for step in (2, 4, 6):
        assert shared.steps[step]["valid_loss"] == pytest.approx(alone.steps[step]["valid_loss"], abs=1e-4)
        assert shared.steps[step]["grad_norm"] == pytest.approx(alone.steps[step]["grad_norm"], rel=1e-3)
    mine, ours = weights_of(one.outputs["model"].path), weights_of(two.outputs["model"].path)
    assert set(mine) == set(ours)
    assert all((mine[name] - ours[name]).abs().max() < 5 * RATES[tuner] for name in ours)
    assert one.values["metrics"]["trained_parameters"] == two.values["metrics"]["trained_parameters"]
    return spec, rows


def test_spread_gradients_of_an_adapter_train_as_whole_ones(kit: SimpleNamespace, make_workdir: MakeWorkdir) -> None:
    alone_and_shared(kit, make_workdir, "lora", "zero2")


def test_spread_weights_train_as_whole_ones_and_go_on_bit_by_bit(
    kit: SimpleNamespace, make_workdir: MakeWorkdir, tmp_path: Path
) -> None:
    spec, rows = alone_and_shared(kit, make_workdir, "full", "zero3")
    first, second = kit.Recorder(), kit.Recorder()
    with pytest.raises(StopRequested):
        run(spec, make_workdir("first", rows), first, lambda: len(first.steps) >= 2)
    checkpoint = first.checkpoints[-1][0]
    assert AutoModelForCausalLM.from_pretrained(checkpoint).config.architectures == ["LlamaForCausalLM"]
    resumed = run(spec, make_workdir("second", rows, resume=checkpoint), second, never)
    assert second.losses
    unbroken, ours = weights_of(tmp_path / "two/output/model"), weights_of(resumed.outputs["model"].path)
    assert all(torch.equal(unbroken[name], ours[name]) for name in ours)


def test_the_best_weights_are_those_that_come_out(kit: SimpleNamespace, make_workdir: MakeWorkdir) -> None:
    """A learning rate at which validation only gets worse after its first steps."""
    rows = kit.chat_rows(16)
    numbers = {
        "max_steps": 30,
        "per_device_batch_size": 4,
        "eval_steps": 2,
        "early_stopping_patience": 2,
        "learning_rate": 0.3,
    }
    spec = kit.spec(
        tuner={"kind": "full"},
        hyperparameters={**numbers, "learning_rate_schedule": "constant"},
        data={"validation_split": 0.25},
        resources={"device_count": 2, "sharding": "zero3"},
    )
    workdir, report = make_workdir("best", rows), kit.Recorder()
    result = run(spec, workdir, report, never)
    assert result.values["metrics"]["best_step"] < result.values["metrics"]["steps"] < 30
    best, out = weights_of(workdir / "best"), weights_of(result.outputs["model"].path)
    assert all(torch.equal(best[name], out[name]) for name in out)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"resources": {"sharding": "zero3"}}, "spec.resources.sharding", "set device_count"),
        ({"tuner": {"kind": "qlora"}}, "spec.resources.sharding", "plain lora and full alone"),
        ({"tuner": {"init_weights": "pissa"}}, "spec.resources.sharding", "plain lora and full alone"),
        ({"recipe": "grpo"}, "spec.resources.sharding", "whose processes generate alone"),
        ({"hyperparameters": {"optimizer": "adafactor"}}, "spec.hyperparameters.optimizer", "use adamw_torch or"),
        ({"hyperparameters": {"precision": "float16"}}, "spec.hyperparameters.precision", "use bfloat16"),
    ],
)
def test_what_can_not_be_spread_is_refused(
    kit: SimpleNamespace, changes: dict[str, Any], field: str, words: str
) -> None:
    spec = kit.spec(**{"resources": {"device_count": 2, "sharding": "zero2"}, **changes})
    with pytest.raises(InvalidArgument) as caught:
        parse_training_config(spec)
    assert any(v.field == field and words in v.description for v in caught.value.violations), caught.value.violations
