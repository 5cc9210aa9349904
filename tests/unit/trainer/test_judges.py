"""Rewards that models give: what they are asked, what their answers are worth, and what is no judge."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.service_tokens import make_service_token
from martlet_trainer import child, judges
from martlet_trainer.config import judging_graders, parse_training_config
from martlet_trainer.gateway_calls import Gateway
from martlet_trainer.rewards import Answer
from martlet_trainer.testing import Recorder, training_spec
from martlet_trainer.testing_cases import ROLLOUT_OPTIONS, STRING_CHECK, recipe_rows
from martlet_trainer.testing_http import ScriptedServer

MakeWorkdir = Callable[..., Path]
JUDGE: dict[str, Any] = {
    "type": "score_model",
    "name": "kind",
    "model": "judge",
    "input": [{"role": "user", "content": "{{item.wanted}}: {{sample.output_text}}"}],
    "range": [0, 10],
}
BOTH = {
    "type": "multi",
    "name": "both",
    "graders": {"kind": JUDGE, "says": STRING_CHECK},
    "calculate_output": "kind + says",
}
ANSWERS = [Answer("ab", 2, {"wanted": "a"}), Answer("c", 1, {"wanted": "a"})]


def never() -> bool:
    return False


def chat(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def rewards(server: ScriptedServer, grader: Mapping[str, Any], answers: Sequence[Answer] = ANSWERS) -> Sequence[float]:
    gateway = Gateway(server.url, make_service_token("internal", "acme"), never)
    return judges.connect([grader], gateway, 7)[grader["name"]](answers)


def by_length(body: Any) -> str:
    """A judge who likes long answers."""
    said = body["messages"][0]["content"].partition(": ")[2]
    return json.dumps(chat(f"I say {len(said)}."))


def test_a_judge_is_asked_about_each_answer() -> None:
    with ScriptedServer((200, by_length)) as server:
        assert list(rewards(server, JUDGE)) == [2.0, 1.0]
        assert list(rewards(server, BOTH)) == [3.0, 1.0]
    bodies = [body for *_, body in server.asked]
    assert {path for path, *_ in server.asked} == {"/v1/chat/completions"}
    assert bodies[0] == {
        "model": "judge",
        "messages": [
            {"role": "user", "content": bodies[0]["messages"][0]["content"]},
            {"role": "user", "content": "Answer with a number from 0 to 10 and nothing else."},
        ],
        "max_tokens": 16,
        "temperature": 0.0,
        "seed": 7,
    }
    assert {body["messages"][0]["content"] for body in bodies} == {"a: ab", "a: c"}


def test_how_a_judge_draws_may_be_said() -> None:
    sampling = {"seed": 3, "temperature": 0.5, "max_completions_tokens": 4}
    with ScriptedServer((200, by_length)) as server:
        rewards(server, {**JUDGE, "sampling_params": sampling})
    assert {(body["seed"], body["temperature"], body["max_tokens"]) for *_, body in server.asked} == {(3, 0.5, 4)}


def test_an_answer_without_a_number_is_worth_nothing_and_a_judge_without_any_fails() -> None:
    with ScriptedServer((200, lambda body: json.dumps(chat("7" if ": ab" in str(body) else "hm")))) as server:
        assert list(rewards(server, JUDGE)) == [7.0, 0.0]
    for text in ("hm", "11", ""):
        with (
            ScriptedServer((200, chat(text))) as server,
            pytest.raises(FailedPrecondition, match="no score for any of 2 answers") as caught,
        ):
            rewards(server, JUDGE)
        assert caught.value.reason == "GRADER_FAILED"


def test_an_answer_that_lacks_what_a_template_names_is_not_shown_to_a_judge() -> None:
    grader = {**JUDGE, "input": [{"role": "user", "content": "x: {{sample.output_json.word}}"}]}
    answers = [Answer('{"word": "abc"}', 3, {}), Answer("no json", 1, {})]
    with ScriptedServer((200, by_length)) as server:
        assert list(rewards(server, grader, answers)) == [3.0, 0.0]
        assert list(rewards(server, grader, answers[1:])) == [0.0]
    assert len(server.asked) == 1


def test_a_judge_that_is_away_is_asked_again_and_one_that_refuses_fails_the_job() -> None:
    with ScriptedServer((503, {"error": {"message": "loading"}}), (200, chat("5"))) as server:
        assert list(rewards(server, JUDGE)) == [5.0, 5.0]
    for status, answer, message in (
        (400, {"error": {"message": "too long"}}, r"kind: judge refused to answer \(HTTP 400\): too long"),
        (200, {"choices": []}, "something else than a chat"),
    ):
        with ScriptedServer((status, answer)) as server, pytest.raises(FailedPrecondition, match=message):
            rewards(server, JUDGE)


def config_of(base: Path, url: str, cache: Path) -> dict[str, Any]:
    """What a worker starts the training's process with."""
    options = {**ROLLOUT_OPTIONS, "rewards": None, "graders": [JUDGE]}
    numbers = {"max_steps": 25, "per_device_batch_size": 4, "learning_rate": 1e-2}
    return {
        "spec": training_spec(recipe="grpo", recipe_options=options, hyperparameters=numbers),
        "base_model": {"kind": "path", "value": str(base), "cache_dir": str(cache)},
        "hub_datasets": {},
        "token_cache": str(cache / "tokens"),
        "allowed_reward_services": [],
        "gateway": {"base_url": url, "token": make_service_token("internal", "acme")},
    }


def test_a_training_learns_what_a_judge_likes(tmp_path: Path, make_workdir: MakeWorkdir, tiny_model_dir: Path) -> None:
    def judge(body: Any) -> str:
        if body is None:
            return json.dumps({"id": "judge"})
        said = body["messages"][0]["content"].partition(": ")[2]
        return json.dumps(chat(str(10 * any(letter in "abcdefghijklm" for letter in said))))

    workdir = make_workdir("a", [{**row, "wanted": "e"} for row in recipe_rows("grpo", 12)])
    (workdir / "inputs" / "base_model").unlink()
    report = Recorder()
    with ScriptedServer((200, judge)) as server:
        child.run_training(config_of(tiny_model_dir, server.url, tmp_path), workdir, report, never)
    assert server.asked[0][0] == "/v1/models/judge"
    found = [report.steps[step]["reward_kind"] for step in sorted(report.steps)]
    assert statistics.mean(found[-5:]) > statistics.mean(found[:5]) + 2


def test_a_judge_that_does_not_exist_is_refused_before_anything_is_loaded(tmp_path: Path, tiny_model_dir: Path) -> None:
    with (
        ScriptedServer((404, {"error": {"message": "The model `judge` does not exist"}})) as server,
        pytest.raises(FailedPrecondition, match="kind: can't ask judge: The model `judge` does not exist"),
    ):
        child.run_training(config_of(tiny_model_dir, server.url, tmp_path), tmp_path, Recorder(), never)


def test_which_graders_ask_models() -> None:
    spec = {"base_model": "m", "training_dataset": "artifacts/a", "recipe": "grpo"}
    both = {**BOTH, "name": "b"}
    config = parse_training_config({**spec, "recipe_options": {"graders": [STRING_CHECK, JUDGE, both]}})
    assert [grader["name"] for grader in judging_graders(config)] == ["kind", "b"]
    assert judging_graders(parse_training_config(spec)) == []
    label = {**JUDGE, "type": "label_model", "labels": ["a"], "passing_labels": ["a"]}
    del label["range"]
    with pytest.raises(InvalidArgument, match="use `score_model`"):
        parse_training_config({**spec, "recipe_options": {"graders": [label]}})
