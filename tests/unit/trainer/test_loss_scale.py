"""Weights of turns (SWIFT's ``loss_scale``): they reach each token, the loss is their mean, and packing changes nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from martlet_core.errors import InvalidArgument
from martlet_inputs.rows.exchanges import EXCHANGES
from martlet_inputs.rows.formats import RowError
from martlet_inputs.rows.kinds import CONVERSATIONS
from martlet_inputs.rows.preferences import FEEDBACK
from martlet_trainer.config import parse_training_config
from martlet_trainer.data.encode import EncodedRow, RowEncoder
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, training_spec
from martlet_trainer.training.batches import collate_padded, collate_rows
from martlet_trainer.training.computation import choose_computation
from martlet_trainer.training.loss import plain_loss
from martlet_trainer.training.models import load_model
from torch.nn import functional

MakeWorkdir = Callable[..., Path]
CPU = torch.device("cpu")


def turns(*scales: float | None) -> dict[str, Any]:
    """A row whose answers have these weights; None leaves it out."""
    messages: list[dict[str, Any]] = []
    for index, scale in enumerate(scales):
        answer = {"role": "assistant", "content": f"answer {index}"}
        messages += [
            {"role": "user", "content": f"ask {index}"},
            answer | ({} if scale is None else {"loss_scale": scale}),
        ]
    return {"messages": messages}


def encode(tokenizer: Any, row: dict[str, Any], **options: Any) -> EncodedRow:
    return RowEncoder(tokenizer, max_length=500, **options).encode(CONVERSATIONS.convert(row, "messages"), "messages")


def weights_by_turn(row: EncodedRow) -> list[float]:
    """Weights of the runs of targets, in order."""
    weights = row.is_target.astype(float) if row.weights is None else row.weights
    runs = [weights[0]]
    for weight in weights[1:]:
        if weight != runs[-1]:
            runs.append(weight)
    return [float(weight) for weight in runs if weight]


@pytest.mark.parametrize(
    ("scales", "options", "wanted"),
    [
        ((None, None), {}, [1.0, 1.0]),
        ((2, 0.5), {}, [2.0, 0.5]),
        ((0, 3), {}, [3.0]),
        ((2, None), {"last_round_only": True}, [1.0]),
        ((2, 0.5), {"last_round_only": True}, [0.5]),
        ((2, 0.5), {"assistant_only_loss": False}, [1.0, 2.0, 1.0, 0.5, 1.0]),
    ],
)
def test_a_turn_weighs_what_its_row_says(tiny_tokenizer: Any, scales: Any, options: Any, wanted: list[float]) -> None:
    row = encode(tiny_tokenizer, turns(*scales), **options)
    assert weights_by_turn(row) == wanted
    total = row.target_count if row.weights is None else row.weights[1:].sum()
    assert row.weight == pytest.approx(total)
    assert (row.weights is None) == all(weight == 1 for weight in wanted)


def test_the_last_round_is_all_behind_the_user(tiny_tokenizer: Any) -> None:
    said = [("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two"), ("assistant", "three")]
    row = encode(
        tiny_tokenizer, {"messages": [{"role": role, "content": text} for role, text in said]}, last_round_only=True
    )
    text = tiny_tokenizer.decode(row.input_ids[row.is_target].tolist())
    assert "two" in text
    assert "three" in text
    assert "one" not in text
    quiet = turns(None, None)
    quiet["messages"][-1]["loss"] = False
    with pytest.raises(RowError, match="no loss in its last round"):
        encode(tiny_tokenizer, quiet, last_round_only=True)


def test_weights_reach_the_gradient(tiny_model_dir: Path, tiny_tokenizer: Any) -> None:
    """Loss, accuracy and gradients are those of a plain weighted cross-entropy, without padding and with it."""
    rows = [encode(tiny_tokenizer, row) for row in (turns(2, 0.5), turns(None), turns(0.25, None, 4))]
    model = load_model(tiny_model_dir, torch.float32, CPU)
    total, correct = 0.0, 0.0
    for row in rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))
        scale = torch.from_numpy((row.is_target if row.weights is None else row.weights).astype(np.float32))[1:]
        logits = model(input_ids=ids[None]).logits[0, :-1]
        total = total + (functional.cross_entropy(logits, ids[1:], reduction="none") * scale).sum()
        correct += float(((logits.argmax(-1) == ids[1:]) * scale).sum())
    assert isinstance(total, torch.Tensor)
    total.backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    padded = plain_loss(model, collate_padded(rows, CPU))
    assert padded.total.item() == pytest.approx(total.item(), rel=1e-5)
    model.zero_grad()
    computation = choose_computation(model, rows, CPU, packing=True)
    found = computation.objective(model, collate_rows(rows, CPU))
    assert found.total.item() == pytest.approx(total.item(), rel=1e-5)
    assert float(found.sums["token_accuracy"]) == pytest.approx(correct)
    found.total.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, wanted[name], atol=1e-4), name


@pytest.mark.parametrize("packing", [False, True])
def test_a_reported_loss_is_the_weighted_mean(make_workdir: MakeWorkdir, packing: bool) -> None:
    """A row with all weights doubled is that row again; one with a turn of weight 0 has only the other turn."""
    numbers = {"max_steps": 1, "learning_rate": 1e-12, "per_device_batch_size": 4}

    def loss(name: str, *rows: dict[str, Any]) -> float:
        report = Recorder()
        spec = training_spec(hyperparameters=numbers, data={"packing": packing, "max_length": 256})
        run(spec, make_workdir(name, list(rows)), report, lambda: False)
        return report.losses[0]

    one, two = loss("one", turns(1, 0)), loss("two", turns(0, 1))
    assert loss("twice", turns(2, 0)) == pytest.approx(one, rel=1e-5)
    answers = [len("answer 0") + 1, len("answer 1") + 1]  # bytes are tokens, and the end of the turn is one
    mixed = (3 * answers[0] * one + answers[1] * two) / (3 * answers[0] + answers[1])
    assert math.isclose(loss("mixed", turns(3, 1)), mixed, rel_tol=1e-4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (turns(-1), r"messages\[1\]\.loss_scale.*from 0 to 1000"),
        (turns(True), r"messages\[1\]\.loss_scale.*is True"),
        (turns(0), "nothing to learn"),
        (
            {"messages": [{"role": "user", "content": "a", "loss_scale": 2}, *turns(1)["messages"][1:]]},
            "belongs to assistant",
        ),
    ],
)
def test_wrong_weights_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError) as caught:
        CONVERSATIONS.convert(row, "messages")
    assert re.search(message, f"{caught.value.field} {caught.value.message}")


def test_recipes_of_whole_answers_refuse_weights() -> None:
    with pytest.raises(RowError, match="is for recipes that learn each token"):
        FEEDBACK.convert({**turns(2), "label": True}, "messages_label")
    with pytest.raises(RowError, match="which distillation doesn't weigh by"):
        EXCHANGES.convert(turns(2), "messages")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "dpo", "data": {"last_round_only": True}}, "last_round_only: has no meaning with recipe dpo"),
        ({"data": {"last_round_only": True, "assistant_only_loss": False}}, "last_round_only: can't be used together"),
    ],
)
def test_what_would_contradict_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_training_config({"base_model": "m", "training_dataset": "artifacts/a", **changes})
