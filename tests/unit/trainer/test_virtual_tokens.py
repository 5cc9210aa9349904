"""Prompt tuning, prefix tuning and P-tuning: the loss is peft's own, and what can't go with virtual tokens is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.recipe import StopRequested
from martlet_trainer.config import parse_training_config
from martlet_trainer.data.encode import EncodedRow
from martlet_trainer.recipes import merge
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, chat_rows, training_spec
from martlet_trainer.testing_cases import SMALL_OPTIONS, SMALL_RATES
from martlet_trainer.training.batches import collate_padded
from martlet_trainer.training.computation import choose_computation
from martlet_trainer.training.models import load_model
from martlet_trainer.tuners.kinds import KINDS
from peft import PeftModel

MakeWorkdir = Callable[..., Path]
VIRTUAL = [name for name, kind in KINDS.items() if kind.virtual_tokens]
CPU = torch.device("cpu")


def train(kind: str, workdir: Path, stop: Any = lambda report: False, **numbers: Any) -> tuple[Any, Recorder]:
    report = Recorder()
    spec = training_spec(hyperparameters={"max_steps": 30, "learning_rate": SMALL_RATES.get(kind, 1e-2), **numbers})
    spec["tuner"] = {"kind": kind, "options": SMALL_OPTIONS.get(kind, {})}
    return run(spec, workdir, report, lambda: stop(report)), report


@pytest.mark.parametrize("kind", VIRTUAL)
def test_they_learn_and_peft_reads_them_and_has_the_same_loss(make_workdir: MakeWorkdir, kind: str) -> None:
    workdir = make_workdir("a", chat_rows(16))
    result, report = train(kind, workdir)
    assert report.losses[-1] < report.losses[0] - 0.05
    output = result.outputs["model"]
    assert output.metadata["tuner"] == kind
    assert sorted(path.name for path in output.path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    base = load_model(workdir / "inputs" / "base_model", torch.float32, CPU)
    model: Any = PeftModel.from_pretrained(base, output.path).eval()
    rows = [
        EncodedRow(np.asarray(ids, dtype=np.int32), np.arange(len(ids)) > 3)
        for ids in ([1, 9, 40, 41, 42, 43, 2], [1, 10, 44, 45, 46])
    ]
    computation = choose_computation(model, rows, CPU, packing=False)
    with torch.no_grad():
        ours = computation.objective(model, computation.collate(rows, CPU)).total
        theirs = sum(peft_loss(model, row) for row in rows)
    assert ours == pytest.approx(theirs, rel=1e-5)
    inputs = workdir.parent / "merge" / "inputs"
    inputs.mkdir(parents=True)
    (inputs / "base_model").symlink_to(workdir / "inputs" / "base_model")
    (inputs / "adapter").symlink_to(output.path)
    with pytest.raises(FailedPrecondition, match=f"is of kind {kind}, virtual tokens"):
        merge.run({"adapter": "ft:a", "base_model": "tiny"}, inputs.parent, Recorder(), lambda: False)


def peft_loss(model: Any, row: EncodedRow) -> float:
    """Summed loss of one row, by labels, as users of peft compute it."""
    ids = torch.tensor(row.input_ids.astype(np.int64))[None]
    labels = torch.where(torch.from_numpy(row.is_target), ids, -100)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.item() * row.target_count


@pytest.mark.parametrize("kind", VIRTUAL)
def test_they_go_on_from_a_checkpoint_as_if_they_had_never_stopped(make_workdir: MakeWorkdir, kind: str) -> None:
    rows = chat_rows(12)
    whole, _ = train(kind, make_workdir("whole", rows), max_steps=5)
    first = make_workdir("first", rows)
    with pytest.raises(StopRequested):
        train(kind, first, lambda report: len(report.losses) >= 3, max_steps=5)
    resumed, _ = train(kind, make_workdir("second", rows, resume=first / "checkpoints" / "step-3"), max_steps=5)
    weights = [result.outputs["model"].path / "adapter_model.safetensors" for result in (whole, resumed)]
    assert len({path.read_bytes() for path in weights}) == 1


def test_positions_lie_behind_the_virtual_tokens() -> None:
    rows = [EncodedRow(np.asarray(ids, dtype=np.int32), np.arange(len(ids)) > 0) for ids in ([5, 6, 7], [8, 9])]
    assert collate_padded(rows, CPU, virtual_tokens=3).positions.tolist() == [3, 4, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"packing": True}}, r"data\.packing: puts several rows behind one another, and \w+ needs its tokens"),
        ({"tuner": {"target_modules": ["q_proj"]}}, r"tuner\.target_modules: has no meaning .* tokens in front"),
        ({"tuner": {"modules_to_save": ["norm"]}}, r"tuner\.modules_to_save: has no meaning .* tokens in front"),
        ({"tuner": {"lora_rank": 4}}, r"tuner\.lora_rank: is LoRA's"),
    ],
)
@pytest.mark.parametrize("kind", VIRTUAL)
def test_what_cannot_go_with_them_is_refused_at_submission(kind: str, changes: dict[str, Any], message: str) -> None:
    values = {"base_model": "m", "training_dataset": "artifacts/a", **changes}
    values["tuner"] = {"kind": kind, **changes.get("tuner", {})}
    with pytest.raises(InvalidArgument, match=message):
        parse_training_config(values)


def test_a_prefix_is_refused_with_gradient_checkpointing() -> None:
    values = {"base_model": "m", "training_dataset": "artifacts/a", "tuner": {"kind": "prefix_tuning"}}
    parse_training_config(
        {**values, "tuner": {"kind": "prompt_tuning"}, "hyperparameters": {"gradient_checkpointing": True}}
    )
    with pytest.raises(InvalidArgument, match=r"gradient_checkpointing: computes layers anew"):
        parse_training_config({**values, "hyperparameters": {"gradient_checkpointing": True}})


@pytest.mark.parametrize("kind", ["prompt_tuning", "p_tuning"])
def test_the_others_train_with_gradient_checkpointing(make_workdir: MakeWorkdir, kind: str) -> None:
    rows = chat_rows(8)
    losses = [
        train(kind, make_workdir(str(on), rows), max_steps=3, gradient_checkpointing=on)[1].losses
        for on in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
