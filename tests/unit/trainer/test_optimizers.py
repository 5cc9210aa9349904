"""Optimizers: every accepted name trains, keeps its state in a checkpoint, and goes on from it to the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from martlet_core.errors import InvalidArgument
from martlet_core.recipe import StopRequested
from martlet_trainer.config import Optimizer, parse_training_config
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, chat_rows, training_spec
from martlet_trainer.training.checkpoint import STATE_DIR
from safetensors.torch import load_file

MakeWorkdir = Callable[..., Path]

NAMES = get_args(Optimizer)
ROWS = chat_rows(8)


def train(workdir: Path, optimizer: str, stop_after: int = 99, **numbers: Any) -> tuple[Any, Recorder]:
    """Four steps of all weights: some matrices are large enough for 8-bit states."""
    report = Recorder()
    numbers = {"max_steps": 4, "optimizer": optimizer, "learning_rate": 1e-3, **numbers}
    spec = training_spec(tuner={"kind": "full"}, hyperparameters=numbers)
    return run(spec, workdir, report, lambda: len(report.steps) >= stop_after), report


def weights(result: Any) -> bytes:
    return (result.outputs["model"].path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("optimizer", NAMES)
def test_two_steps_saved_and_two_resumed_are_four(make_workdir: MakeWorkdir, optimizer: str) -> None:
    whole, unbroken = train(make_workdir("unbroken", ROWS), optimizer)
    with pytest.raises(StopRequested):
        train(workdir := make_workdir("first", ROWS), optimizer, stop_after=2)
    checkpoint = workdir / "checkpoints" / "step-2"
    resumed, second = train(make_workdir("second", ROWS, resume=checkpoint), optimizer)
    assert second.losses == pytest.approx(unbroken.losses[2:], rel=1e-6)
    assert weights(resumed) == weights(whole)
    kept = {tensor.dtype for tensor in load_file(checkpoint / STATE_DIR / "optimizer.safetensors").values()}
    assert (torch.uint8 in kept) == ("8bit" in optimizer), "states of 8 bit are kept in 8 bit"


def test_each_kind_of_optimizer_goes_its_own_way(make_workdir: MakeWorkdir) -> None:
    """And those that differ in storage or speed alone go together."""
    losses = {name: train(make_workdir(name, ROWS), name)[1].losses[-1] for name in NAMES}
    adamw = losses["adamw_torch"]
    for name in ("adamw_torch_fused", "paged_adamw_32bit"):
        assert losses[name] == pytest.approx(adamw, rel=1e-4)
    for name in ("adamw_bnb_8bit", "paged_adamw_8bit"):
        assert losses[name] == pytest.approx(adamw, rel=1e-2)
        assert losses[name] != pytest.approx(adamw, rel=1e-6), "8 bit round"
    for name in ("adafactor", "sgd"):
        assert losses[name] != pytest.approx(adamw, rel=1e-3)


@pytest.mark.parametrize("optimizer", NAMES)
def test_weight_decay_counts(make_workdir: MakeWorkdir, optimizer: str) -> None:
    plain, _ = train(make_workdir("plain", ROWS), optimizer, max_steps=1)
    decayed, _ = train(make_workdir("decayed", ROWS), optimizer, max_steps=1, weight_decay=0.5)
    assert weights(plain) != weights(decayed)


def test_another_name_is_refused_with_those_that_work() -> None:
    spec = training_spec(hyperparameters={"optimizer": "lion_8bit"})
    with pytest.raises(InvalidArgument) as caught:
        parse_training_config(spec)
    [violation] = caught.value.violations
    assert violation.field == "spec.hyperparameters.optimizer"
    for name in NAMES:
        assert f"'{name}'" in violation.description
