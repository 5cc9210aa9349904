"""The recipes that learn from whole answers: dpo, orpo, cpo, simpo, kto."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from martlet_core.errors import InvalidArgument
from martlet_core.recipe import StopRequested
from martlet_inputs.rows.formats import RowError
from martlet_inputs.rows.preferences import FEEDBACK, PREFERENCES
from martlet_inputs.rows.report import DataReport
from martlet_trainer import testing
from martlet_trainer.config import parse_training_config
from martlet_trainer.recipes import RECIPES
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, training_spec
from martlet_trainer.testing_cases import recipe_rows
from martlet_trainer.training.loss import LossHead, plain_log_probs
from martlet_trainer.training.preference import Answers, ahead

MakeWorkdir = Callable[..., Path]
PAIRED = ["dpo", "orpo", "cpo", "simpo"]
USER = {"role": "user", "content": "1+1?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("2", "3"))


def pairs(count: int, start: int = 0) -> list[dict[str, Any]]:
    return recipe_rows("dpo", count, start)


def verdicts(count: int) -> list[dict[str, Any]]:
    return recipe_rows("kto", count)


def train(recipe: str, workdir: Path, stop: Any = lambda: False, **changes: Any) -> tuple[Any, Recorder]:
    report = Recorder()
    numbers = {"max_steps": 30, "per_device_batch_size": 4, "learning_rate": 1e-2, **changes.pop("hyperparameters", {})}
    spec = training_spec(recipe=recipe, hyperparameters=numbers, **changes)
    return run(spec, workdir, report, stop), report


@pytest.mark.parametrize("recipe", [*PAIRED, "kto"])
def test_the_better_answer_gains_on_held_out_rows(make_workdir: MakeWorkdir, recipe: str) -> None:
    workdir = make_workdir("a", recipe_rows(recipe, 35), validation=recipe_rows(recipe, 12, start=35))
    result, report = train(recipe, workdir, validation_dataset="artifacts/b", hyperparameters={"eval_steps": 10})
    metrics = result.values["metrics"]
    assert metrics["valid_reward_accuracy"] > 0.9
    if recipe == "kto":
        assert metrics["valid_good_reward"] > metrics["valid_bad_reward"]
        margin = metrics["valid_good_reward"] - metrics["valid_bad_reward"]
        assert metrics["valid_reward_margin"] == pytest.approx(margin, rel=1e-4)
    else:
        assert metrics["valid_reward_margin"] > report.steps[10]["valid_reward_margin"] - 1e-6
        assert metrics["valid_reward_margin"] > 0
    assert result.outputs["model"].metadata["recipe"] == recipe
    assert result.values["training_data"]["rows_used"] == 35
    assert ("computing the reference" in report.phases) == (recipe in ("dpo", "kto"))


@pytest.mark.parametrize("recipe", ["dpo", "kto"])
def test_training_starts_from_where_the_reference_is(make_workdir: MakeWorkdir, recipe: str) -> None:
    _, report = train(recipe, make_workdir("a", recipe_rows(recipe, 8)), hyperparameters={"max_steps": 1})
    assert report.losses[0] == pytest.approx(math.log(2) if recipe == "dpo" else 0.5, abs=1e-4)


@pytest.mark.parametrize("recipe", [*PAIRED, "kto"])
def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(make_workdir: MakeWorkdir, recipe: str) -> None:
    """The reference is the model that training began with, not the one it goes on with."""
    rows = recipe_rows(recipe, 16)
    numbers = {"max_steps": 6}
    whole, _ = train(recipe, make_workdir("whole", rows), hyperparameters=numbers)
    first = make_workdir("first", rows)
    report = Recorder()
    spec = training_spec(recipe=recipe, hyperparameters={**numbers, "per_device_batch_size": 4, "learning_rate": 1e-2})
    with pytest.raises(StopRequested):
        run(spec, first, report, lambda: len(report.losses) >= 3)
    checkpoint = first / "checkpoints" / "step-3"
    resumed, after = train(recipe, make_workdir("second", rows, resume=checkpoint), hyperparameters=numbers)
    assert "computing the reference" not in after.phases
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        paths = (result.outputs["model"].path / name for result in (whole, resumed))
        assert len({path.read_bytes() for path in paths}) == 1


def test_two_processes_train_as_one_with_the_same_global_batch(make_workdir: MakeWorkdir) -> None:
    """Each computes the reference of a part of the pairs, and learns the others'."""
    rows, held_out = pairs(10), pairs(5, start=10)
    numbers = {"max_steps": 4, "eval_steps": 2}
    losses = {}
    for count, sharding in ((1, "none"), (2, "none"), (2, "zero3")):
        workdir = make_workdir(f"{count}-{sharding}", rows, validation=held_out)
        _, report = train(
            "dpo",
            workdir,
            validation_dataset="artifacts/b",
            hyperparameters={**numbers, "per_device_batch_size": 4 // count},
            resources={"device_count": count, "sharding": sharding},
        )
        losses[count, sharding] = [
            *report.losses,
            report.steps[4]["valid_loss"],
            report.steps[4]["valid_reward_margin"],
        ]
    assert losses[2, "none"] == pytest.approx(losses[1, "none"], abs=1e-4)
    assert losses[2, "zero3"] == pytest.approx(losses[1, "none"], abs=1e-4)


def test_full_training_has_a_reference_too(make_workdir: MakeWorkdir) -> None:
    workdir = make_workdir("a", pairs(16))
    numbers = {"max_steps": 10, "learning_rate": 1e-3}
    result, report = train("dpo", workdir, tuner={"kind": "full"}, hyperparameters=numbers)
    assert result.outputs["model"].kind == "model"
    assert report.losses[-1] < report.losses[0] - 0.1


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
def test_losses_of_dpo(make_workdir: MakeWorkdir, kind: str) -> None:
    options = {"loss": kind, "beta": 0.5, "sft_weight": 0.1}
    _, report = train("dpo", make_workdir("a", pairs(16)), recipe_options=options, hyperparameters={"max_steps": 15})
    assert report.steps[15]["reward_margin"] > 0.1


def test_ahead_is_what_the_papers_say() -> None:
    difference = torch.tensor([-1.0, 0.0, 2.0])
    sigmoid = [-math.log(1 / (1 + math.exp(-0.1 * d))) for d in (-1, 0, 2)]
    assert ahead(difference, "sigmoid", beta=0.1).tolist() == pytest.approx(sigmoid)
    flipped = [-math.log(1 / (1 + math.exp(0.1 * d))) for d in (-1, 0, 2)]
    smoothed = [0.8 * one + 0.2 * other for one, other in zip(sigmoid, flipped, strict=True)]
    assert ahead(difference, "sigmoid", beta=0.1, label_smoothing=0.2).tolist() == pytest.approx(smoothed)
    assert ahead(difference, "hinge", beta=0.5).tolist() == pytest.approx([1.5, 1.0, 0.0])
    assert ahead(difference, "ipo", beta=0.5).tolist() == pytest.approx([4.0, 1.0, 1.0])


def test_answers_of_different_lengths_have_means() -> None:
    answers = Answers(torch.tensor([[-2.0, -9.0]]), torch.tensor([[2, 3]]), torch.zeros((1, 0)), torch.tensor([True]))
    assert answers.means.tolist() == [[-1.0, -3.0]]


def test_sliced_log_probabilities_are_the_plain_ones(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so are their gradients, with weights of their own for each target."""
    from martlet_trainer.data.encode import EncodedRow
    from martlet_trainer.training import loss
    from martlet_trainer.training.attention import IMPLEMENTATION
    from martlet_trainer.training.batches import collate_padded, collate_rows
    from martlet_trainer.training.models import load_model

    cpu = torch.device("cpu")
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, 250, (n,), generator=generator).int().numpy() for n in (21, 13)]
    rows = [EncodedRow(row, row > 60) for row in ids]
    found = {}
    for way in ("plain", "sliced"):
        model = load_model(tiny_model_dir, torch.float32, cpu)
        head = LossHead.of(model)
        assert head is not None
        if way == "sliced":
            model.set_attn_implementation(IMPLEMENTATION)
            monkeypatch.setattr(loss, "_SLICE_BYTES", 4 * 259 * 5)
        batch = (collate_padded if way == "plain" else collate_rows)(rows, cpu)
        values = (plain_log_probs if way == "plain" else head.log_probs)(model, batch)
        sums = values.new_zeros(2).index_add(0, batch.row_of_target, values)
        (sums * torch.tensor([1.0, -0.3])).sum().backward()
        found[way] = (sums.detach(), [p.grad for p in model.parameters() if p.grad is not None])
    assert torch.allclose(found["plain"][0], found["sliced"][0], rtol=1e-4)
    for one, other in zip(found["plain"][1], found["sliced"][1], strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("row", "format_name"),
    [
        ({"messages": [USER, GOOD], "rejected_response": "3"}, "rejected_response"),
        ({"messages": [USER, GOOD], "rejected_messages": [USER, BAD]}, "rejected_messages"),
        ({"query": "1+1?", "response": "2", "rejected_response": "3"}, "query_rejected_response"),
        ({"prompt": "1+1?", "chosen": "2", "rejected": "3"}, "prompt_chosen_rejected"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, "prompt_chosen_rejected"),
        (
            {
                "conversations": [{"from": "human", "value": "1+1?"}],
                "chosen": {"from": "gpt", "value": "2"},
                "rejected": {"from": "gpt", "value": "3"},
            },
            "sharegpt_chosen_rejected",
        ),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "chosen_rejected"),
        (
            {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
            "openai_preference",
        ),
    ],
)
def test_pairs_are_read_in_every_form(row: dict[str, Any], format_name: str) -> None:
    report = DataReport()
    pair = PREFERENCES.read(row, report)
    assert report.format == format_name
    assert [message["content"] for message in pair.chosen.messages] == ["1+1?", "2"]
    assert [message["content"] for message in pair.rejected.messages] == ["1+1?", "3"]
    assert pair.chosen.trained == pair.rejected.trained == (False, True)


def test_only_what_differs_is_trained() -> None:
    before = [USER, {"role": "assistant", "content": "2"}, {"role": "user", "content": "Sure?"}]
    row = {"messages": [*before, {"role": "assistant", "content": "Yes."}], "rejected_response": "No."}
    pair = PREFERENCES.read(row, DataReport())
    assert pair.chosen.trained == pair.rejected.trained == (False, False, False, True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [USER, GOOD], "rejected_response": "2"}, "the two answers are the same"),
        ({"messages": [USER, GOOD]}, "has no known format"),
        ({"messages": [USER], "rejected_response": "3"}, "the last turn must be the assistant's"),
        ({"messages": [USER, GOOD], "rejected_response": 3}, "is int; must be text"),
        ({"conversations": [USER], "chosen": "2", "rejected": "3"}, "must be a turn, with from and value"),
        (
            {"input": [USER], "preferred_output": [GOOD], "non_preferred_output": [BAD]},
            "must be an object with messages",
        ),
        ({"messages": [USER, GOOD], "rejected_response": "3", "images": ["a.png"]}, "belongs to multimodal training"),
    ],
)
def test_bad_pairs_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message.replace(".", r"\.")):
        PREFERENCES.read(row, DataReport())


def test_a_verdict_is_true_or_false() -> None:
    assert FEEDBACK.read({"messages": [USER, GOOD], "label": False}, DataReport()).good is False
    with pytest.raises(RowError, match="must be true"):
        FEEDBACK.read({"messages": [USER, GOOD], "label": 1}, DataReport())


def test_rewards_of_held_out_rows_are_means_of_each_kind(make_workdir: MakeWorkdir) -> None:
    """However many of them are good: the share needn't be the training's."""
    good, bad = ([row for row in recipe_rows("kto", 12, start=35) if row["label"] is kind] for kind in (True, False))
    rewards = []
    for name, held_out in (("a", good + bad), ("b", good * 3 + bad)):
        workdir = make_workdir(name, verdicts(16), validation=held_out)
        result, _ = train("kto", workdir, validation_dataset="artifacts/b", hyperparameters={"max_steps": 6})
        found = result.values["metrics"]
        rewards.append((found["valid_good_reward"], found["valid_bad_reward"]))
    assert rewards[0] == pytest.approx(rewards[1], rel=1e-3)
    assert rewards[0][0] != pytest.approx(0, abs=1e-4)


def test_kto_needs_both_verdicts_and_two_rows_a_batch(make_workdir: MakeWorkdir) -> None:
    with pytest.raises(InvalidArgument, match="has no bad"):
        train("kto", make_workdir("a", [{**row, "label": True} for row in verdicts(6)]))
    with pytest.raises(InvalidArgument, match="needs at least 2"):
        train("kto", make_workdir("b", verdicts(6)), hyperparameters={"per_device_batch_size": 1})
    held_out = make_workdir("c", verdicts(6), validation=[{**row, "label": False} for row in verdicts(4)])
    with pytest.raises(InvalidArgument, match=r"spec\.validation_dataset: has no good"):
        train("kto", held_out, validation_dataset="artifacts/b")


def test_pairs_are_refused_by_sft_and_rows_by_dpo(make_workdir: MakeWorkdir) -> None:
    with pytest.raises(InvalidArgument, match=r"preference pairs \(recipes dpo, orpo, cpo, simpo\)"):
        train("sft", make_workdir("a", pairs(4)))
    with pytest.raises(InvalidArgument, match="no known format"):
        train("dpo", make_workdir("b", testing.chat_rows(4)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"packing": True}}, r"packing: is for recipes whose rows stand alone \(sft, pretrain\)"),
        ({"data": {"assistant_only_loss": False}}, "has no meaning with recipe dpo"),
        ({"recipe_options": {"beta": 0}}, r"recipe_options\.beta"),
        ({"recipe_options": {"gamma": 1}}, r"recipe_options\.gamma"),
    ],
)
def test_what_has_no_meaning_is_refused_at_submission(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_training_config({"base_model": "m", "training_dataset": "artifacts/a", "recipe": "dpo", **changes})


def test_learning_rates_are_the_recipes() -> None:
    spec = {"base_model": "m", "training_dataset": "artifacts/a"}
    required = {"distill": {"teacher_model": "t"}}
    rates = {
        recipe: parse_training_config({**spec, "recipe": recipe, "recipe_options": required.get(recipe, {})})
        .resolved()
        .hyperparameters.learning_rate
        for recipe in RECIPES
    }
    assert rates["sft"] == rates["pretrain"] == 2e-4
    assert rates["dpo"] == rates["kto"] == 5e-5


def test_long_texts_are_trained_in_pieces(make_workdir: MakeWorkdir) -> None:
    rows = [{"text": "the quick brown fox " * 20}, {"text": "jumps over"}]
    result, report = train(
        "pretrain", make_workdir("a", rows), data={"max_length": 64}, hyperparameters={"max_steps": 12}
    )
    data = result.values["training_data"]
    assert (data["rows_used"], data["rows_truncated"]) == (2, 0)
    assert data["loss_tokens"] == 400 + 10  # each token but the first of a text, and its end
    assert report.losses[-1] < report.losses[0] - 0.5


def test_texts_that_must_not_be_cut_are_refused(make_workdir: MakeWorkdir) -> None:
    rows = [{"text": "the quick brown fox " * 20}]
    data = {"max_length": 64, "on_long_rows": "refuse"}
    with pytest.raises(InvalidArgument, match=r"or set data\.on_long_rows to truncate, which trains on it in pieces"):
        train("pretrain", make_workdir("a", rows), data=data)


def test_groups_know_their_tokens() -> None:
    import numpy as np
    from martlet_trainer.data.encode import EncodedRow
    from martlet_trainer.data.examples import EncodedGroup

    row = EncodedRow(np.arange(5, dtype=np.int32), np.array([False, False, True, True, True]))
    group = EncodedGroup((row, replace(row, truncated=True)))
    assert (group.token_count, group.target_count, group.weight, group.truncated) == (10, 6, 1, True)
