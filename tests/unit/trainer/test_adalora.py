"""AdaLoRA: our loop does what a bare loop around peft's model does, ranks end where they should, and wrong steps are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from martlet_core.errors import InvalidArgument
from martlet_inputs.rows.kinds import CONVERSATIONS
from martlet_inputs.rows.report import DataReport
from martlet_trainer.config import parse_training_config
from martlet_trainer.data.encode import EncodedRow, RowEncoder
from martlet_trainer.data.examples import encode_conversation
from martlet_trainer.data.load import encoded_rows
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, chat_rows, training_spec
from martlet_trainer.training.batches import collate_padded
from martlet_trainer.training.models import load_model, load_tokenizer
from peft import AdaLoraConfig, PeftModel, get_peft_model

MakeWorkdir = Callable[..., Path]
STEPS = 12
CPU = torch.device("cpu")
#: One row short of what five layers could have each: some layers end with nothing.
OPTIONS = {"init_r": 4, "target_r": 1, "tinit": 2, "tfinal": 3, "deltaT": 2, "orth_reg_weight": 0.1}


def encoded(workdir: Path) -> list[EncodedRow]:
    """The job's rows as its recipe encodes them."""
    tokenizer = load_tokenizer(workdir / "inputs" / "base_model")
    encode = encode_conversation(RowEncoder(tokenizer, max_length=512))
    return list(encoded_rows(workdir / "inputs/training_dataset", encode, CONVERSATIONS, DataReport()))


def by_peft(workdir: Path) -> Any:
    """A bare loop over all rows at once, with peft's own loss, penalty and allocation."""
    torch.manual_seed(42)
    base = load_model(workdir / "inputs" / "base_model", torch.float32, CPU)
    config = AdaLoraConfig(
        task_type="CAUSAL_LM", target_modules="all-linear", lora_alpha=16, total_step=STEPS, **OPTIONS
    )
    model: Any = get_peft_model(base, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    rows = encoded(workdir)
    batch = collate_padded([EncodedRow(np.append(row.input_ids, 0), row.is_target) for row in rows], CPU)
    labels = torch.full_like(batch.inputs["input_ids"], -100)
    for index, row in enumerate(rows):
        target = torch.from_numpy(row.is_target)
        labels[index, : len(target)][target] = torch.from_numpy(row.input_ids.astype(np.int64))[target]
    for step in range(STEPS):
        model(**batch.inputs, labels=labels).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
    return model


def test_it_allocates_as_peft_does(make_workdir: MakeWorkdir) -> None:
    workdir = make_workdir("a", chat_rows(6))
    numbers = {
        "max_steps": STEPS,
        "per_device_batch_size": 6,
        "learning_rate": 1e-2,
        "learning_rate_schedule": "constant",
        "max_grad_norm": 0.0,
    }
    spec = training_spec(hyperparameters=numbers)
    result = run({**spec, "tuner": {"kind": "adalora", "options": OPTIONS}}, workdir, Recorder(), lambda: False)
    output = result.outputs["model"]
    reference = by_peft(workdir)
    loaded: Any = PeftModel.from_pretrained(load_model(workdir / "inputs/base_model", torch.float32, CPU), output.path)
    theirs = dict(reference.named_modules())
    compared = 0
    for name, module in loaded.named_modules():
        if hasattr(module, "get_delta_weight"):
            wanted, found = theirs[name].get_delta_weight("default"), module.get_delta_weight("default")
            assert torch.allclose(found, wanted, atol=1e-4), name
            compared += int(wanted.abs().max() > 1e-3)
    assert compared > 3
    ranks = output.metadata["ranks"]
    assert sum(ranks.values()) == OPTIONS["target_r"] * len(ranks)
    assert len(set(ranks.values())) > 1, "every layer has the same rank"


def test_ranks_need_steps_to_fall_in(make_workdir: MakeWorkdir) -> None:
    spec = training_spec(hyperparameters={"max_steps": 4})
    spec["tuner"] = {"kind": "adalora", "options": {"tinit": 2, "tfinal": 2}}
    with pytest.raises(InvalidArgument, match=r"tuner\.options.*leaves none of the 4 steps"):
        run(spec, make_workdir("a", chat_rows(4)), Recorder(), lambda: False)


def test_a_target_over_the_start_is_refused_at_submission() -> None:
    values = {"base_model": "m", "training_dataset": "artifacts/a"}
    with pytest.raises(InvalidArgument, match=r"tuner\.options.*target_r is 12, and must be less than init_r"):
        parse_training_config({**values, "tuner": {"kind": "adalora", "options": {"target_r": 12}}})
