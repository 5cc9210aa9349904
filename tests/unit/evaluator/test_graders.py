"""OpenAI's graders as pure functions."""

from __future__ import annotations

from typing import Any

import pytest
from martlet_core.errors import InvalidArgument
from martlet_core.graders import calculate, model_requests, referred_messages, render
from martlet_evaluator.graders import criteria_violations, grade

ITEM = {"question": "What is the capital of Portugal?", "answer": "Lisbon", "tags": ["city", {"n": 3}]}
SAMPLE = {"output_text": "It is lisbon."}
CHECK = {"type": "string_check", "name": "c", "input": "{{sample.output_text}}", "reference": "{{ item.answer }}"}
SIMILAR = {
    "type": "text_similarity",
    "name": "s",
    "input": "{{sample.output_text}}",
    "reference": "It is Lisbon.",
    "pass_threshold": 0.5,
}
LABEL = {
    "type": "label_model",
    "name": "l",
    "model": "judge",
    "input": [{"role": "developer", "content": "Say good or bad: {{sample.output_text}}"}],
    "labels": ["good", "bad"],
    "passing_labels": ["good"],
}
SCORE = {
    "type": "score_model",
    "name": "n",
    "model": "judge",
    "input": [{"role": "user", "content": [{"type": "input_text", "text": "{{item.question}}"}]}],
    "range": [0, 10],
    "pass_threshold": 6,
}


@pytest.mark.parametrize(("operation", "passed"), [("eq", False), ("ne", True), ("like", False), ("ilike", True)])
def test_string_check(operation: str, passed: bool) -> None:
    found = grade({**CHECK, "operation": operation}, ITEM, SAMPLE)
    assert (found.passed, found.score, found.error) == (passed, float(passed), "")


@pytest.mark.parametrize("metric", ["fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_5", "rouge_l"])
def test_text_similarity_is_one_for_the_same_text_and_less_for_another(metric: str) -> None:
    same = {**SIMILAR, "evaluation_metric": metric, "reference": "one two three four five six", "pass_threshold": 0.9}
    assert grade(same, ITEM, {"output_text": "one two three four five six"}).score == pytest.approx(1.0)
    other = grade(same, ITEM, {"output_text": "one two three seven eight nine"})
    assert other.score < 0.9
    assert not other.passed


def test_a_label_model_is_asked_for_its_labels_and_passes_by_them() -> None:
    (request,) = model_requests(LABEL, ITEM, SAMPLE).values()
    assert request.choices == ("good", "bad")
    assert request.messages == ({"role": "system", "content": "Say good or bad: It is lisbon."},)
    assert grade(LABEL, ITEM, SAMPLE, {"": "good"}).passed
    assert not grade(LABEL, ITEM, SAMPLE, {"": "bad"}).passed
    assert "none of the labels" in grade(LABEL, ITEM, SAMPLE, {"": "maybe"}).error


def test_a_score_model_gives_a_number_of_its_range() -> None:
    (request,) = model_requests(SCORE, ITEM, SAMPLE).values()
    assert request.messages[0]["content"] == ITEM["question"]
    found = grade(SCORE, ITEM, SAMPLE, {"": "Score: 7.5"})
    assert (found.score, found.passed) == (7.5, True)
    assert not grade(SCORE, ITEM, SAMPLE, {"": "5"}).passed
    for said in ("eleven", "11"):
        assert "no number from 0 to 10" in grade(SCORE, ITEM, SAMPLE, {"": said}).error


def test_multi_calculates_from_its_parts() -> None:
    multi = {
        "type": "multi",
        "name": "m",
        "graders": {"check": {**CHECK, "operation": "ilike"}, "score": SCORE},
        "calculate_output": "0.5 * check + score / 20",
    }
    assert criteria_violations([multi], "g") == []
    assert list(model_requests(multi, ITEM, SAMPLE)) == ["score/"]
    found = grade(multi, ITEM, SAMPLE, {"score/": "8"})
    assert found.score == pytest.approx(0.9)
    assert found.passed
    assert found.details["sub_scores"] == {"check": 1.0, "score": 8.0}
    assert grade(multi, ITEM, SAMPLE, {"score/": "none"}).error.startswith("score:")


def test_templates_reach_into_the_row_and_name_what_is_missing() -> None:
    assert render("{{item.tags[1].n}} {{item.tags[0]}}", ITEM, SAMPLE) == "3 city"
    with pytest.raises(InvalidArgument, match=r"item\.colour.*no 'colour'"):
        render("{{item.colour}}", ITEM, SAMPLE)
    assert "no 'colour'" in grade({**CHECK, "operation": "eq", "reference": "{{item.colour}}"}, ITEM, SAMPLE).error


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("a + b * 2", 8.0),
        ("-(a - b) ^ 2", -1.0),
        ("max(a, b) / min(a, b)", 1.5),
        ("sqrt(floor(a * 2.1))", 2.0),
        ("2^3", 8.0),
    ],
)
def test_expressions(expression: str, value: float) -> None:
    assert calculate(expression, {"a": 2.0, "b": 3.0}) == pytest.approx(value)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')",
        "a.real",
        "[a]",
        "a if b else a",
        "(lambda: 1)()",
        "c",
        "1/0",
        "a +",
        "'x'",
        "9^9^9^9",
        "open(a)",
    ],
)
def test_anything_else_is_refused(expression: str) -> None:
    with pytest.raises(InvalidArgument):
        calculate(expression, {"a": 2.0, "b": 3.0})


@pytest.mark.parametrize(
    ("grader", "field", "words"),
    [
        ({"type": "python", "name": "p", "source": "def grade(): ..."}, "type", "no sandbox"),
        ({"type": "strng_check"}, "type", "it is one of"),
        ({**CHECK, "operation": "same"}, "operation", "eq, ne, like, ilike"),
        ({**CHECK}, "operation", "is required"),
        ({**SIMILAR, "evaluation_metric": "cosine"}, "evaluation_metric", "embedding model"),
        ({**SIMILAR, "evaluation_metric": "meteor"}, "evaluation_metric", "WordNet"),
        ({**LABEL, "passing_labels": ["fine"]}, "passing_labels", "none of the labels"),
        ({**SIMILAR, "evaluation_metric": "bleu", "pass_threshold": None}, "pass_threshold", "is required"),
        ({**CHECK, "operation": "eq", "ignore_case": True}, "ignore_case", "is not a field"),
        ({**CHECK, "operation": "eq", "input": "{{itm.answer}}"}, "input", "is not known"),
        ({**SCORE, "sampling_params": {"top_k": 3}}, "sampling_params.top_k", "not offered"),
        ({**SCORE, "input": [{"role": "robot", "content": "x"}]}, "input.0.role", "must be one of"),
        ({**SCORE, "range": [3, 1]}, "range", "smaller first"),
        ({**SCORE, "input": "text"}, "input", "list of messages"),
        (
            {"type": "multi", "name": "m", "graders": {"a": CHECK}, "calculate_output": "a"},
            "graders.a.operation",
            "required",
        ),
        (
            {"type": "multi", "name": "m", "graders": {"a": {**CHECK, "operation": "eq"}}, "calculate_output": "a + z"},
            "calculate_output",
            "`z` is no grader",
        ),
    ],
)
def test_a_wrong_grader_is_named_with_its_field(grader: dict[str, Any], field: str, words: str) -> None:
    found = criteria_violations([grader], "g")
    assert [v.field for v in found] == [f"g.0.{field}"]
    assert words in found[0].description


def test_numbers_of_a_struct_are_whole_where_they_are() -> None:
    params = {"seed": 7.0, "max_completions_tokens": 8.0, "temperature": 0.5}
    assert criteria_violations([{**SCORE, "sampling_params": params}], "g") == []
    (found,) = criteria_violations([{**SCORE, "sampling_params": {**params, "seed": 7.5}}], "g")
    assert found.field == "g.0.sampling_params.seed"


def test_names_of_graders_differ() -> None:
    check = {**CHECK, "operation": "eq"}
    assert [v.field for v in criteria_violations([check, check], "g")] == ["g.1.name"]


def test_messages_that_a_row_holds_are_sent_as_they_stand() -> None:
    turns = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be {{item.brief}}."}]},
        {"role": "user", "content": "Hi"},
    ]
    sent = referred_messages("item.chats[0]", {"chats": [turns]})
    assert sent == ({"role": "system", "content": "Be {{item.brief}}."}, {"role": "user", "content": "Hi"})
    for item in ({}, {"chats": ["hi"]}, {"chats": [[]]}, {"chats": [[{"role": "user", "content": [{"image": 1}]}]]}):
        with pytest.raises(InvalidArgument):
            referred_messages("item.chats[0]", item)
