"""The recipes that learn from rewards of the model's own answers: grpo and rloo."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from martlet_core.errors import InvalidArgument
from martlet_core.recipe import StopRequested
from martlet_inputs.rows.formats import RowError
from martlet_inputs.rows.prompts import PROMPTS
from martlet_inputs.rows.report import DataReport
from martlet_trainer.config import answers_options, parse_training_config
from martlet_trainer.recipes.options import RewardOptions
from martlet_trainer.recipes.training import run
from martlet_trainer.rewards import Answer, build
from martlet_trainer.testing import Recorder, training_spec
from martlet_trainer.testing_cases import ROLLOUT_OPTIONS, STRING_CHECK, recipe_rows
from martlet_trainer.training.rollouts import group_relative, leave_one_out

MakeWorkdir = Callable[..., Path]
RECIPES = ["grpo", "rloo"]
#: Answers by replicas.
VIA = {"via": "inference"}
(REWARD,) = ROLLOUT_OPTIONS["rewards"]


def questions(count: int, start: int = 0) -> list[dict[str, Any]]:
    return recipe_rows("grpo", count, start)


def train(recipe: str, workdir: Path, stop: Any = lambda report: False, **changes: Any) -> tuple[Any, Recorder]:
    report = Recorder()
    numbers = {"max_steps": 20, "per_device_batch_size": 4, "learning_rate": 1e-2, **changes.pop("hyperparameters", {})}
    options = {**ROLLOUT_OPTIONS, **changes.pop("recipe_options", {})}
    spec = training_spec(recipe=recipe, hyperparameters=numbers, recipe_options=options, **changes)
    return run(spec, workdir, report, lambda: stop(report)), report


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_reward_rises_on_held_out_questions(make_workdir: MakeWorkdir, recipe: str) -> None:
    workdir = make_workdir("a", questions(16), validation=questions(6, start=16))
    numbers = {"max_steps": 30, "eval_steps": 30}
    result, report = train(recipe, workdir, validation_dataset="artifacts/b", hyperparameters=numbers)
    rewards = [report.steps[step]["reward"] for step in sorted(report.steps)]
    assert statistics.mean(rewards[-5:]) > statistics.mean(rewards[:5]) + 0.3
    metrics = result.values["metrics"]
    assert metrics["valid_reward"] > 0.8
    assert metrics["valid_loss"] == pytest.approx(-metrics["valid_reward"])
    assert metrics["valid_reward_regex"] == metrics["valid_reward"]
    assert 1 <= report.steps[30]["completion_length"] <= 6
    assert result.outputs["model"].metadata["recipe"] == recipe


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(make_workdir: MakeWorkdir, recipe: str) -> None:
    """The answers are drawn again as they would have been."""
    rows, numbers = questions(10), {"max_steps": 5}
    whole, _ = train(recipe, make_workdir("whole", rows), hyperparameters=numbers)
    first = make_workdir("first", rows)
    with pytest.raises(StopRequested):
        train(recipe, first, lambda report: len(report.losses) >= 3, hyperparameters=numbers)
    resume = first / "checkpoints" / "step-3"
    resumed, _ = train(recipe, make_workdir("second", rows, resume=resume), hyperparameters=numbers)
    weights = [result.outputs["model"].path / "adapter_model.safetensors" for result in (whole, resumed)]
    assert len({path.read_bytes() for path in weights}) == 1


def test_divergence_holds_the_model_back(make_workdir: MakeWorkdir) -> None:
    rows, moved = questions(8), {}
    for beta in (0.001, 5.0):
        _, report = train("grpo", make_workdir(str(beta), rows), recipe_options={"beta": beta})
        moved[beta] = report.steps[20]["kl"]
        assert report.steps[1]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert 0 < moved[5.0] < 0.5 * moved[0.001]


@pytest.mark.parametrize("tuner", [{"kind": "full"}, {"init_weights": "pissa"}])
def test_divergence_needs_the_base_model_underneath(make_workdir: MakeWorkdir, tuner: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"recipe_options\.beta"):
        train("grpo", make_workdir("a", questions(4)), tuner=tuner, recipe_options={"beta": 0.1})


def test_full_training_works_without_it(make_workdir: MakeWorkdir) -> None:
    numbers = {"max_steps": 3, "learning_rate": 1e-4}
    result, _ = train("grpo", make_workdir("a", questions(8)), tuner={"kind": "full"}, hyperparameters=numbers)
    assert result.outputs["model"].kind == "model"


def test_rewards_are_weighed_and_told_apart(make_workdir: MakeWorkdir) -> None:
    rewards = [REWARD, {"name": "length", "target": 3, "weight": 0.5}, {"name": "accuracy", "weight": 2}]
    _, report = train(
        "grpo", make_workdir("a", questions(8)), recipe_options={"rewards": rewards}, hyperparameters={"max_steps": 2}
    )
    step = report.steps[1]
    total = step["reward_regex"] + 0.5 * step["reward_length"] + 2 * step["reward_accuracy"]
    assert step["reward"] == pytest.approx(total, abs=1e-5)


def test_rows_without_a_solution_are_counted_where_it_is_needed(make_workdir: MakeWorkdir) -> None:
    rows = [*questions(4), *({"prompt": row["messages"], "messages": row["messages"]} for row in questions(2))]
    with pytest.raises(InvalidArgument, match="2 of 6 rows have no `solution`"):
        train("grpo", make_workdir("a", rows), recipe_options={"rewards": [{"name": "accuracy"}]})


LETTERS = "abcdefghijklm"
ANY_LETTER = {
    "type": "multi",
    "name": "any letter",
    "graders": {letter: {**STRING_CHECK, "name": letter, "reference": letter} for letter in LETTERS},
    "calculate_output": f"2 * max({', '.join(LETTERS)})",
}


def test_openais_graders_are_rewards(make_workdir: MakeWorkdir) -> None:
    rows = [{**row, "wanted": "e"} for row in questions(16)]
    options = {"rewards": None, "graders": [STRING_CHECK, ANY_LETTER]}
    _, report = train("grpo", make_workdir("a", rows), recipe_options=options, hyperparameters={"max_steps": 30})
    rewards = [report.steps[step]["reward_any letter"] for step in sorted(report.steps)]
    assert statistics.mean(rewards[-5:]) > statistics.mean(rewards[:5]) + 0.4
    last = report.steps[30]
    assert last["reward"] == pytest.approx(last["reward_says"] + last["reward_any letter"], abs=1e-5)


def test_a_row_without_what_a_grader_names_is_refused(make_workdir: MakeWorkdir) -> None:
    rows = [*({**row, "wanted": "a"} for row in questions(2)), *questions(2)]
    with pytest.raises(InvalidArgument, match=r"grader says: .*item\.wanted.*no 'wanted' \(row 3 of 4\)"):
        train("grpo", make_workdir("a", rows), recipe_options={"rewards": None, "graders": [STRING_CHECK]})


def test_advantages() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    centred = group_relative(rewards, scale=False)
    assert centred.tolist() == [[0.5, -0.5, -0.5, 0.5], [0.0] * 4]
    scaled = group_relative(rewards, scale=True)
    assert scaled[0].tolist() == pytest.approx([0.8659, -0.8659, -0.8659, 0.8659], abs=1e-3)
    assert scaled[1].tolist() == [0.0] * 4
    assert leave_one_out(torch.tensor([[1.0, 0.0, 0.0]])).tolist()[0] == pytest.approx([1.0, -0.5, -0.5])


@pytest.mark.parametrize(
    ("text", "solution", "reward"),
    [
        ("42", 42, 1.0),
        ("The answer is 1,042.0.", "1042", 1.0),
        ("<think>5</think><answer>7</answer>", 7, 1.0),
        ("so \\boxed{3/4}", "3/4", 1.0),
        ("Paris.", "paris", 1.0),
        ("It is Paris", "Paris", 0.0),
        ("41", 42, 0.0),
        ("", 42, 0.0),
        ("12 or 13", 12, 0.0),
    ],
)
def test_accuracy(text: str, solution: Any, reward: float) -> None:
    assert build(RewardOptions(name="accuracy"))(Answer(text, 1, {"solution": solution})) == reward


def test_other_rewards() -> None:
    shape = build(RewardOptions(name="format"))
    assert shape(Answer("<think>a</think> <answer>b</answer>", 1, {})) == 1.0
    assert shape(Answer("<answer>b</answer>", 1, {})) == 0.0
    length = build(RewardOptions(name="length", target=10))
    assert [length(Answer("", tokens, {})) for tokens in (10, 5, 30)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewards": [{"name": "regex"}]}, "regex needs pattern"),
        ({"rewards": [{"name": "regex", "pattern": "("}]}, "no regular expression"),
        ({"rewards": [{"name": "accuracy", "target": 3}]}, "target belongs to length"),
        ({"rewards": [{"name": "accuracy"}, {"name": "accuracy"}]}, "each name may be given once"),
        ({"rewards": [{"name": "beauty"}]}, r"recipe_options\.rewards"),
        ({"graders": [{**STRING_CHECK, "operation": "near"}]}, "operation"),
        ({"graders": [{"type": "python", "name": "p", "source": "x"}]}, "sandbox"),
        ({"graders": [STRING_CHECK, STRING_CHECK]}, "each name may be given once"),
        ({"num_generations": 1}, r"recipe_options\.num_generations"),
    ],
)
def test_wrong_options_are_refused_at_submission(options: dict[str, Any], message: str) -> None:
    spec = {"base_model": "m", "training_dataset": "artifacts/a", "recipe": "grpo", "recipe_options": options}
    with pytest.raises(InvalidArgument, match=message):
        parse_training_config(spec)


def test_a_question_keeps_its_other_fields() -> None:
    report = DataReport()
    row = PROMPTS.read({"prompt": "1+1?", "system": "Add.", "solution": 2, "level": "easy"}, report)
    assert [message["role"] for message in row.conversation.messages] == ["system", "user"]
    assert (row.columns, report.ignored_fields) == ({"solution": 2, "level": "easy"}, [])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "put a known answer into",
        ),
        ({"prompt": 3}, "must be text"),
        ({"text": "a"}, "no known format"),
    ],
)
def test_bad_questions_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        PROMPTS.read(row, DataReport())


def test_a_question_that_is_too_long_is_refused_and_never_cut(make_workdir: MakeWorkdir) -> None:
    rows = [{"prompt": "why? " * 40, "solution": 1}]
    with pytest.raises(InvalidArgument, match=r"more than data\.max_length 64; shorten it"):
        train("grpo", make_workdir("a", rows), data={"max_length": 64})


@pytest.mark.parametrize(
    ("tuner", "field"),
    [
        ({"kind": "full"}, r"tuner\.kind"),
        ({"kind": "loha"}, r"tuner\.kind"),
        ({"kind": "prompt_tuning"}, r"tuner\.kind"),
        ({"use_dora": True}, r"tuner\.use_dora"),
        ({"modules_to_save": ["lm_head"]}, r"tuner\.modules_to_save"),
    ],
)
def test_tuners_that_no_replica_takes_are_refused_at_submission(tuner: dict[str, Any], field: str) -> None:
    spec = {"base_model": "m", "training_dataset": "artifacts/a", "recipe": "grpo", "tuner": tuner}
    parse_training_config(spec)
    with pytest.raises(InvalidArgument, match=rf"{field}.*rollouts\.via to training"):
        parse_training_config({**spec, "recipe_options": {"rollouts": VIA}})


@pytest.mark.parametrize(
    ("recipe", "rollouts", "message"),
    [
        ("grpo", {"via": "vllm"}, r"rollouts\.via"),
        ("grpo", {"sync_steps": 2}, "sync_steps is for via inference"),
        ("grpo", {**VIA, "sync_steps": 0}, r"rollouts\.sync_steps"),
        ("grpo", {**VIA, "epsilon": 1}, r"rollouts\.epsilon"),
        ("distill", {**VIA, "epsilon": 0.1}, "epsilon"),
        ("sft", VIA, "rollouts"),
    ],
)
def test_where_answers_are_drawn_is_checked_at_submission(recipe: str, rollouts: dict[str, Any], message: str) -> None:
    options = {"rollouts": rollouts} | ({"teacher_model": "t"} if recipe == "distill" else {})
    spec = {"base_model": "m", "training_dataset": "artifacts/a", "recipe": recipe, "recipe_options": options}
    with pytest.raises(InvalidArgument, match=message):
        parse_training_config(spec)


def test_answers_are_drawn_in_the_training_unless_it_is_said() -> None:
    spec = {"base_model": "m", "training_dataset": "artifacts/a", "recipe": "grpo"}
    assert answers_options(parse_training_config(spec)).via == "training"
    chosen = answers_options(
        parse_training_config({**spec, "recipe_options": {"rollouts": {**VIA, "sync_steps": 4.0}}})
    )
    assert (chosen.via, chosen.sync_steps) == ("inference", 4)
