"""Adapters on a base that is kept quantized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from martlet_core.errors import InvalidArgument
from martlet_trainer.recipes.sft import run
from martlet_trainer.testing import Recorder, chat_rows, training_spec
from transformers import AutoModelForCausalLM, AutoTokenizer

MakeWorkdir = Callable[..., Path]


def train(workdir: Path, **changes: Any) -> tuple[Any, Recorder]:
    report = Recorder()
    return run(training_spec(**changes), workdir, report, lambda: False), report


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_qlora_trains_on_a_quantized_base(make_workdir: MakeWorkdir, quantization: str) -> None:
    result, report = train(
        make_workdir("a", chat_rows(20)),
        tuner={"kind": "qlora", "quantization": quantization, "lora_rank": 8},
        hyperparameters={"max_steps": 15},
    )
    assert report.losses[-1] < report.losses[0] - 0.3
    assert result.outputs["model"].kind == "adapter"


def test_a_base_quantized_beforehand_trains_as_it_is(
    make_workdir: MakeWorkdir, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from transformers import BitsAndBytesConfig

    stored = tmp_path / "quantized"
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, quantization_config=config, device_map={"": "cpu"})
    model.save_pretrained(stored)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(stored)
    workdir = make_workdir("a", chat_rows(20))
    (workdir / "inputs" / "base_model").unlink()
    (workdir / "inputs" / "base_model").symlink_to(stored)
    _, report = train(workdir, hyperparameters={"max_steps": 15}, tuner={"lora_rank": 8})
    assert report.losses[-1] < report.losses[0] - 0.3
    with pytest.raises(InvalidArgument, match="quantized"):
        train(workdir, tuner={"kind": "full"})
    with pytest.raises(InvalidArgument, match="is int8, but the base model is stored as nf4; leave it out"):
        train(workdir, tuner={"kind": "qlora", "quantization": "int8"})
    train(workdir, tuner={"kind": "qlora", "quantization": "nf4"}, hyperparameters={"max_steps": 1})
