"""Liger's kernels: refused where they can't run, and asked for without the loss. ``tests/gpu`` compares their numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_trainer.config import parse_training_config
from martlet_trainer.recipes import training
from martlet_trainer.testing import Recorder, chat_rows, training_spec
from martlet_trainer.training import liger

MakeWorkdir = Callable[..., Path]
WANTED = {"use_liger_kernel": True, "max_steps": 1}
Calls = list[dict[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What Liger's function for Llamas was given, of a package with nothing else in it."""
    given: Calls = []

    def apply(rope: bool = True, fused_linear_cross_entropy: bool = True, model: Any = None) -> None:
        given.append({"rope": rope, "fused": fused_linear_cross_entropy, "model": type(model).__name__})

    module = ModuleType("liger_kernel.transformers.monkey_patch")
    module.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply}  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(training, "require_liger", lambda _: None)
    return given


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resources": {"device": "cpu"}}, "is true, and its kernels need a GPU, but resources.device is cpu; leave"),
        ({"tuner": {"kind": "ln_tuning"}}, "would take the place of the norms that ln_tuning trains; leave it out"),
    ],
)
def test_what_cannot_go_with_it_is_refused_at_submission(changes: dict[str, Any], message: str) -> None:
    values = {"base_model": "m", "training_dataset": "artifacts/a", "hyperparameters": {"use_liger_kernel": True}}
    parse_training_config(values)
    with pytest.raises(InvalidArgument, match=f"hyperparameters.use_liger_kernel: {message}"):
        parse_training_config({**values, **changes})


def test_a_worker_without_a_gpu_refuses_it(make_workdir: MakeWorkdir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spec = {**training_spec(hyperparameters=WANTED), "resources": {"device": "auto"}}
    with pytest.raises(InvalidArgument, match="need a GPU, but the training runs on cpu; leave it out"):
        training.run(spec, make_workdir("a", chat_rows(4)), Recorder(), lambda: False)


def test_an_environment_without_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FailedPrecondition, match=r"has no liger-kernel; install .*requirements\.cuda\.txt") as caught:
        liger.require_liger(torch.device("cuda"))
    assert caught.value.reason == "NO_LIGER"


@pytest.mark.parametrize("kind", ["lora", "full", "adapter"])
def test_the_model_itself_gets_all_but_the_loss(make_workdir: MakeWorkdir, calls: Calls, kind: str) -> None:
    report = Recorder()
    spec = {**training_spec(hyperparameters=WANTED), "resources": {"device": "auto"}, "tuner": {"kind": kind}}
    training.run(spec, make_workdir("a", chat_rows(4)), report, lambda: False)
    assert calls == [{"rope": True, "fused": False, "model": "LlamaForCausalLM"}]
    assert any("Liger's kernels compute what they know" in line for line in report.lines)


def test_an_architecture_that_liger_does_not_know_is_refused(calls: Calls) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=16))
    with pytest.raises(InvalidArgument, match="Liger has no kernels for models of type gpt2; leave it out"):
        liger.use_liger(model)
    assert calls == []
