"""A longer context: what is written is a whole model whose config has it, and which says what was trained."""

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
from martlet_trainer.tuners.longlora import stretched
from martlet_trainer.tuners.options import LongloraOptions
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config

MakeWorkdir = Callable[..., Path]
LONG = {"messages": [{"role": "user", "content": "a" * 700}, {"role": "assistant", "content": "b"}]}


def train(workdir: Path, rows: str = "artifacts/b", stop: Any = lambda report: False, **numbers: Any) -> Any:
    report = Recorder()
    spec = training_spec(hyperparameters={"max_steps": 5, "learning_rate": 1e-3, **numbers}, validation_dataset=rows)
    spec |= {"tuner": {"kind": "longlora", "options": {"factor": 2.0, "r": 4}}, "data": {"max_length": 1000}}
    return run(spec, workdir, report, lambda: stop(report)), report


def test_the_result_reads_rows_that_the_base_model_could_not(make_workdir: MakeWorkdir) -> None:
    rows = [*chat_rows(7), LONG]
    workdir = make_workdir("a", rows, validation=rows)
    result, report = train(workdir, eval_steps=5)
    assert not result.values["training_data"]["rows_truncated"]
    output = result.outputs["model"]
    assert (output.kind, output.metadata["tuner"]) == ("model", "longlora")
    model: Any = AutoModelForCausalLM.from_pretrained(output.path)
    assert model.config.max_position_embeddings == 1024
    assert model.config.rope_parameters["rope_type"] == "yarn"
    again, spec = Recorder(), training_spec(hyperparameters={"max_steps": 1, "learning_rate": 1e-12})
    spec |= {"validation_dataset": "artifacts/b", "data": {"max_length": 1000}}
    workdir = make_workdir("again", rows, validation=rows)
    (workdir / "inputs" / "base_model").unlink()
    (workdir / "inputs" / "base_model").symlink_to(output.path)
    run(spec, workdir, again, lambda: False)
    assert again.steps[1]["valid_loss"] == pytest.approx(report.steps[5]["valid_loss"], abs=1e-3)
    before = load_file(make_workdir("b", rows) / "inputs/base_model/model.safetensors")
    after = load_file(output.path / "model.safetensors")
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert not same, "norms, embeddings and all linear layers were to move"


def test_it_goes_on_as_if_never_stopped(make_workdir: MakeWorkdir) -> None:
    rows = chat_rows(8)
    whole, _ = train(make_workdir("whole", rows, validation=rows[:2]))
    first = make_workdir("first", rows, validation=rows[:2])
    with pytest.raises(StopRequested):
        train(first, stop=lambda report: len(report.losses) >= 3)
    resume = first / "checkpoints" / "step-3"
    resumed, _ = train(make_workdir("second", rows, validation=rows[:2], resume=resume))
    files = [result.outputs["model"].path / "model.safetensors" for result in (whole, resumed)]
    assert len({path.read_bytes() for path in files}) == 1


def test_models_without_rotary_positions_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="needs one set of rotary positions"):
        stretched(GPT2Config(), LongloraOptions())


def test_lora_fields_are_refused_at_submission() -> None:
    values = {"base_model": "m", "training_dataset": "artifacts/a", "tuner": {"kind": "longlora", "lora_rank": 4}}
    with pytest.raises(InvalidArgument, match=r"lora_rank: has no meaning with tuner\.kind longlora"):
        parse_training_config(values)
