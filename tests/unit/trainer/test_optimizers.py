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
from martlet_trainer.training.low_rank_adamw import LowRankAdamW
from safetensors.torch import load_file

MakeWorkdir = Callable[..., Path]

NAMES = get_args(Optimizer)
ROWS = chat_rows(8)
#: A projection that fits the tiny model, and changes between stop and end.
_OWN = {name: {"projection_rank": 8, "projection_interval": 3} for name in ("galore_adamw", "apollo_adamw")}


def train(workdir: Path, optimizer: str, stop_after: int = 99, **numbers: Any) -> tuple[Any, Recorder]:
    """Four steps of all weights: some matrices are large enough for 8-bit states."""
    report = Recorder()
    numbers = {"max_steps": 4, "optimizer": optimizer, "learning_rate": 1e-3, **_OWN.get(optimizer, {}), **numbers}
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
    for name in ("adafactor", "sgd", "galore_adamw", "apollo_adamw"):
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


def matrix(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))


def gradients(parameter: torch.nn.Parameter, count: int) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(2)
    return [torch.randn(parameter.shape, generator=source) for _ in range(count)]


@pytest.mark.parametrize("method", ["galore", "apollo"])
def test_without_a_rank_it_is_adamw(method: Any) -> None:
    ours, theirs = matrix(6, 4), matrix(6, 4)
    own = LowRankAdamW([{"params": [ours], "weight_decay": 0.1}], 1e-2, method)
    torchs = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1)
    for gradient in gradients(ours, 5):
        for parameter, optimizer in ((ours, own), (theirs, torchs)):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 6), (6, 12)])
def test_galore_is_adam_in_the_space_of_the_first_gradient(shape: tuple[int, int]) -> None:
    """Projected on its singular vectors, as galore-torch does; held for as long as the interval says."""
    parameter = matrix(*shape)
    low = torch.nn.Parameter(torch.zeros(shape[0], 3) if shape[0] > shape[1] else torch.zeros(3, shape[1]))
    start = parameter.detach().clone()
    group = {"params": [parameter], "rank": 3, "interval": 10, "scale": 0.5}
    optimizer, adam = LowRankAdamW([group], 1e-2, "galore"), torch.optim.Adam([low], lr=1e-2)
    given = gradients(parameter, 4)
    left, _, right = torch.linalg.svd(given[0], full_matrices=False)
    for gradient in given:
        parameter.grad = gradient.clone()
        optimizer.step()
        low.grad = gradient @ right[:3].T if shape[0] > shape[1] else left[:, :3].T @ gradient
        adam.step()
    back = low @ right[:3] if shape[0] > shape[1] else left[:, :3] @ low
    assert torch.allclose(parameter - start, 0.5 * back, atol=1e-5)
    state = optimizer.state[parameter]
    assert state["exp_avg"].numel() == state["exp_avg_sq"].numel() == 3 * 12
    assert state["projection"].shape == (3, 6)


def test_apollo_scales_each_channel_of_the_gradient() -> None:
    """The paper's algorithm 1 on the first step, where Adam's direction is the sign: the norm of a channel is the root of the rank."""
    parameter = matrix(12, 6)
    start = parameter.detach().clone()
    optimizer = LowRankAdamW([{"params": [parameter], "rank": 3, "interval": 10, "scale": 1.0}], 1e-2, "apollo")
    [gradient] = gradients(parameter, 1)
    parameter.grad = gradient.clone()
    optimizer.step()
    low = gradient @ optimizer.state[parameter]["projection"].T
    wanted = -1e-2 * gradient * (3**0.5 / low.norm(dim=1, keepdim=True))
    assert torch.allclose(parameter - start, wanted, atol=1e-5)
    parameter.grad = 100 * gradient
    before = parameter.detach().clone()
    optimizer.step()
    assert (parameter - before).norm() <= 1.02 * wanted.norm(), "it grew faster than the limit"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hyperparameters": {"optimizer": "galore_adamw"}},
            r"optimizer: is galore_adamw, which saves memory on whole",
        ),
        ({"hyperparameters": {"projection_rank": 4}}, r"projection_rank: is for galore_adamw and apollo_adamw"),
    ],
)
def test_projections_are_for_whole_matrices(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_training_config(training_spec(**changes))
