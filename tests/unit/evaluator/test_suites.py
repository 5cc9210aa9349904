"""Each suite, end to end, against a server over real HTTP."""

from __future__ import annotations

import math
from typing import Any

import pytest
from martlet_core.errors import FailedPrecondition
from martlet_evaluator.suite_options import ExactMatchOptions
from martlet_evaluator.suites.exact_match import matches
from martlet_evaluator.suites.judge import pair_outcome, read_verdict


def rows(*pairs: tuple[str, str]) -> list[Any]:
    return [{"prompt": question, "completion": answer} for question, answer in pairs]


@pytest.mark.parametrize(
    ("text", "options", "matched"),
    [
        (" Lisbon\n", {}, True),
        ("lisbon", {}, False),
        ("lisbon.", {"ignore_case": True, "ignore_punctuation": True}, True),
        (" Lisbon", {"strip": False}, False),
        ("It is 3. No: the answer is 4, Lisbon", {"extract": r"answer is \d, (\w+)"}, True),
        ("Paris, then Lisbon", {"extract": r"[A-Z]\w+"}, True),
        ("nothing", {"extract": r"[A-Z]\w+"}, False),
    ],
)
def test_exact_match(text: str, options: dict[str, Any], matched: bool) -> None:
    assert matches(text, "Lisbon", ExactMatchOptions(**options)) is matched


def test_classification_holds_targets_to_the_labels_and_shows_the_confusion(server: Any, evaluate: Any) -> None:
    data = rows(*[(f"{i}", ("good", "bad")[i % 2]) for i in range(10)])
    server.models["model"] = lambda body: {"0": "bad", "3": "Good!", "5": "dunno"}.get(
        body["messages"][-1]["content"], ("good", "bad")[int(body["messages"][-1]["content"]) % 2]
    )
    done = evaluate(data, ["classification"])
    assert server.requests[0]["structured_outputs"] == {"choice": ["bad", "good"]}
    assert server.requests[0]["max_tokens"] == 5
    metrics = done.metrics["model"]
    assert metrics["classification.accuracy"]["value"] == pytest.approx(0.7)
    assert metrics["classification.unreadable"]["value"] == pytest.approx(0.1)
    details = done.json["details"]["classification"]["model"]
    assert details["confusion"] == {
        "labels": ["bad", "good"],
        "columns": ["bad", "good", "(none)"],
        "counts": [[3, 1, 1], [1, 4, 0]],
    }
    assert "ignores them" in details["notes"][0]


def test_classification_says_where_labels_could_not_be_enforced(server: Any, evaluate: Any) -> None:
    server.models["model"] = lambda body: (
        (400, {}, "unknown field structured_outputs") if "structured_outputs" in body else "good"
    )
    done = evaluate(rows(("a", "good"), ("b", "bad")), ["classification"], concurrency=1)
    assert "answers were free" in done.json["details"]["classification"]["model"]["notes"][0]
    assert done.metrics["model"]["classification.accuracy"]["value"] == 0.5


def test_texts_that_are_no_labels_are_refused(server: Any, evaluate: Any) -> None:
    with pytest.raises(FailedPrecondition, match=r"201 different answers.*exact_match or generation"):
        evaluate(rows(*[(f"q{i}", f"a{i}") for i in range(201)]), ["classification"])
    options = {"suite": "classification", "options": {"labels": ["good", "bad"]}}
    with pytest.raises(FailedPrecondition, match="rows expect 'fine', which is none of them"):
        evaluate(rows(("q", "fine")), [options], name="strangers")


def test_generation_scores_overlap(server: Any, evaluate: Any) -> None:
    data = rows(("a", "the quick brown fox jumps"), ("b", "over the lazy dog today"))
    server.models["model"] = lambda body: "the quick brown fox jumps" if body["messages"][0]["content"] == "a" else "no"
    metrics = evaluate(data, ["generation"]).metrics["model"]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert metrics[f"generation.{name}"]["value"] == 0.5
    assert 0 < metrics["generation.bleu"]["value"] < 100
    assert (
        metrics["generation.chrf"]["low"] <= metrics["generation.chrf"]["value"] <= metrics["generation.chrf"]["high"]
    )
    assert metrics["generation.answer_words"]["value"] == 3.0


def test_perplexity_is_over_all_tokens(server: Any, evaluate: Any) -> None:
    def vllm(body: Any) -> Any:
        if "prompt_logprobs" not in body:
            return "x"
        answer = body["messages"][-1]["content"]
        number = {"one": -1.0, "two words": -2.0}[answer]
        entries = [None, *[{"7": {"logprob": -9.0}}] * 4, *[{"7": {"logprob": number}}] * len(answer.split())]
        return {"choices": [{"message": {"content": ""}}], "prompt_logprobs": entries, "usage": {"prompt_tokens": 5}}

    server.models["model"] = vllm
    metrics = evaluate(rows(("a", "one"), ("b", "two words")), ["perplexity"]).metrics["model"]
    assert metrics["perplexity.perplexity"]["value"] == pytest.approx(math.exp(5 / 3))
    assert metrics["perplexity.bits_per_byte"]["value"] == pytest.approx(5 / 12 / math.log(2))


@pytest.mark.parametrize(
    ("forward", "backward", "win", "changed", "first"),
    [
        ("1", "2", 1.0, 0.0, 0.5),
        ("2", "1", 0.0, 0.0, 0.5),
        ("1", "1", 0.5, 1.0, 1.0),
        ("2", "2", 0.5, 1.0, 0.0),
        ("tie", "tie", 0.5, 0.0, None),
        ("1", "tie", 0.5, 1.0, 1.0),
    ],
)
def test_a_win_needs_both_orders(forward: str, backward: str, win: float, changed: float, first: float | None) -> None:
    outcome = pair_outcome(forward, backward)
    assert (outcome["win_rate"], outcome["order_changed_verdict"], outcome.get("first_preferred")) == (
        win,
        changed,
        first,
    )


def test_verdicts_are_read_from_the_start() -> None:
    assert [read_verdict(text) for text in ("1", "**2**", "Tie.", "Answer 1", "12", "both")] == [
        "1",
        "2",
        "tie",
        "1",
        None,
        None,
    ]


def test_judge_scores_and_pairs_with_both_orders(server: Any, evaluate: Any) -> None:
    def judge(body: Any) -> str:
        text = body["messages"][-1]["content"]
        if "Give a score" in text:
            return "5" if "[Answer]\nlong and good" in text else "2"
        first, second = text.split("[Answer 1]\n")[1].split("\n\nWhich")[0].split("\n\n[Answer 2]\n")
        if "q9" in text:
            return "1"  # whatever stands first
        return "tie" if first == second else "1" if "good" in first else "2"

    server.models |= {"base": lambda body: "short", "tuned": lambda body: "long and good", "judge": judge}
    data = rows(*[(f"q{i}", "reference") for i in range(10)])
    done = evaluate(data, [{"suite": "judge", "options": {"model": "judge"}}], ["base", "tuned"])
    assert done.metrics["base"]["judge.score"]["value"] == 2.0
    assert "judge.win_rate" not in done.metrics["base"]
    tuned = done.metrics["tuned"]
    assert tuned["judge.score"]["value"] == 5.0
    assert tuned["judge.win_rate"]["value"] == pytest.approx(0.95)
    assert tuned["judge.order_changed_verdict"]["value"] == pytest.approx(0.1)
    assert tuned["judge.first_preferred"]["value"] == pytest.approx(0.55)
    asked = [request for request in server.requests if request["model"] == "judge"]
    assert len(asked) == 10 + 10 + 20
    assert "[Reference answer]\nreference" in asked[0]["messages"][-1]["content"]
    assert {tuple(r["structured_outputs"]["choice"]) for r in asked} == {("1", "2", "3", "4", "5"), ("1", "2", "tie")}


def test_a_judge_that_does_not_judge_is_a_failure_not_a_score(server: Any, evaluate: Any) -> None:
    server.models |= {"model": lambda body: "x", "judge": lambda body: "I'd rather not."}
    with pytest.raises(FailedPrecondition, match="no score from 1 to 5"):
        evaluate(rows(("a", "b")), [{"suite": "judge", "options": {"model": "judge"}}])


def test_latency_needs_no_rows_and_measures_each_level(server: Any, evaluate: Any) -> None:
    server.models["model"] = lambda body: "one two three four"
    options = {"concurrency": [1, 3], "requests": 6, "warmup": 1, "max_tokens": 9, "ignore_eos": True}
    done = evaluate(None, [{"suite": "latency", "options": options}])
    metrics = done.metrics["model"]
    for level in ("c1", "c3"):
        assert metrics[f"latency.ttft_ms.{level}"]["low"] > 0
        assert metrics[f"latency.tokens_per_second.{level}"]["value"] > 0
        assert "low" not in metrics[f"latency.tokens_per_second.{level}"]
    assert len(done.records) == 12
    assert {(r["max_tokens"], r["ignore_eos"], r["stream"]) for r in server.requests} == {(9, True, True)}
    assert len(server.requests) == 14


def test_graders_sample_with_a_template_and_ask_models(server: Any, evaluate: Any) -> None:
    server.models |= {
        "model": lambda body: body["messages"][-1]["content"].removeprefix("Capital of ").replace("Peru", "Lima"),
        "judge": lambda body: "good" if "Lima" in body["messages"][0]["content"] else "bad",
    }
    criteria = [
        {
            "type": "string_check",
            "name": "same",
            "input": "{{sample.output_text}}",
            "reference": "{{item.capital}}",
            "operation": "eq",
        },
        {
            "type": "label_model",
            "name": "opinion",
            "model": "judge",
            "input": [{"role": "user", "content": "Good? {{sample.output_text}}"}],
            "labels": ["good", "bad"],
            "passing_labels": ["good"],
        },
    ]
    options = {
        "testing_criteria": criteria,
        "input_messages": [{"role": "user", "content": "Capital of {{item.country}}"}],
    }
    data = [{"item": {"country": "Peru", "capital": "Lima"}}, {"item": {"country": "Chile", "capital": "Santiago"}}]
    done = evaluate(data, [{"suite": "graders", "options": options}])
    metrics = done.metrics["model"]
    for name in ("pass_rate", "same.pass_rate", "opinion.score"):
        assert metrics[f"graders.{name}"]["value"] == 0.5
    assert done.records[0]["details"]["grades"] == {"opinion": {"label": "good"}}


def test_graders_can_grade_answers_that_the_rows_hold(server: Any, evaluate: Any) -> None:
    criterion = {
        "type": "string_check",
        "name": "c",
        "input": "{{sample.output_text}}",
        "reference": "b",
        "operation": "like",
    }
    options = {"testing_criteria": [criterion], "sample": False}
    data = [{"item": {}, "sample": {"output_text": text}} for text in ("abc", "b", "x")]
    done = evaluate(data, [{"suite": "graders", "options": options}])
    assert done.metrics["model"]["graders.pass_rate"]["value"] == pytest.approx(2 / 3)
    assert server.requests == []


EXACT = {
    "type": "string_check",
    "name": "same",
    "input": "{{sample.output_text}}",
    "reference": "{{item.capital}}",
    "operation": "eq",
}


def graders(*criteria: Any, **options: Any) -> list[dict[str, Any]]:
    """The suite with these criteria."""
    return [{"suite": "graders", "options": {"testing_criteria": list(criteria or [EXACT]), **options}}]


def test_records_of_graders_say_what_was_sent_what_came_and_each_grade(server: Any, evaluate: Any) -> None:
    def judge(body: Any) -> str:
        return "0.75" if "Lima" in body["messages"][0]["content"] else "none"

    server.models |= {
        "model": lambda body: (400, {}, "no") if "Mars" in body["messages"][0]["content"] else "Lima",
        "judge": judge,
        "second": judge,
    }
    scorer = {"type": "score_model", "model": "judge", "input": [{"role": "user", "content": "{{item.capital}}"}]}
    both = {
        "type": "multi",
        "name": "both",
        "graders": {"a": {**scorer, "name": "a"}, "b": {**scorer, "name": "b", "model": "second"}},
        "calculate_output": "(a + b) / 2",
    }
    capitals = {"Peru": "Lima", "Chile": "Santiago", "Mars": "Lima"}
    data = [{"item": {"country": country, "capital": capital}} for country, capital in capitals.items()]
    prompt = [{"role": "user", "content": "Of {{item.country}}"}]
    done = evaluate(data, graders(EXACT, both, input_messages=prompt), max_failed_rows=3)
    right, ungraded, unanswered = done.records
    assert [(r["row"], r["status"]) for r in done.records] == [(0, "pass"), (1, "error"), (2, "error")]
    assert right["item"] == data[0]["item"]
    assert right["sample"] == {
        "model": "model",
        "input": [{"role": "user", "content": "Of Peru"}],
        "output": [{"role": "assistant", "content": "Lima"}],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6, "cached_tokens": 0},
        "error": None,
    }
    same, multi = right["results"]
    assert same == {"name": "same", "type": "string_check", "passed": True, "score": 1.0, "sample": None}
    assert (multi["name"], multi["type"], multi["passed"], multi["score"]) == ("both", "multi", True, 0.75)
    assert (multi["sample"]["model"], multi["sample"]["invocation_count"]) == ("judge", 1)
    assert [other["model"] for other in multi["sample"]["others"]] == ["second"]
    assert [result["name"] for result in ungraded["results"]] == ["same"]
    (left,) = ungraded["ungraded"]
    assert left["name"] == "both"
    assert left["sample"]["usage"]["total_tokens"] == 6
    assert "no number" in ungraded["sample"]["error"]
    assert ungraded["sample"]["output"] == [{"role": "assistant", "content": "Lima"}]
    assert (unanswered["sample"]["output"], unanswered["sample"]["usage"], unanswered["results"]) == ([], None, [])
    assert "HTTP 400" in unanswered["sample"]["error"]


def test_graders_ask_with_the_messages_that_a_row_holds(server: Any, evaluate: Any) -> None:
    server.models["model"] = lambda body: body["messages"][-1]["content"]
    turns = [{"role": "developer", "content": "Repeat."}, {"role": "user", "content": "{{item.capital}}"}]
    data = [{"item": {"turns": turns, "capital": "{{item.capital}}", "land": "Peru"}}]
    done = evaluate(data, graders(item_reference="item.turns"), category_field="land")
    assert (done.records[0]["status"], done.records[0]["category"]) == ("pass", "Peru")
    assert [turn["role"] for turn in server.requests[0]["messages"]] == ["system", "user"]


def test_graders_of_given_answers_ask_nobody_and_want_only_what_they_name(server: Any, evaluate: Any) -> None:
    about_item = {**EXACT, "name": "item", "input": "{{item.capital}}", "reference": "Lima"}
    data = [{"item": {"capital": "Lima"}}, {"item": {"capital": "Lima"}, "sample": {"output_text": "x", "model": "m"}}]
    done = evaluate(data, graders(about_item, sample=False), targets=["rows"])
    assert [record["status"] for record in done.records] == ["pass", "pass"]
    bare, given = (record["sample"] for record in done.records)
    assert (bare["model"], bare["input"], bare["output"], bare["usage"]) == ("", [], [], None)
    assert (given["model"], given["output"], given["usage"]) == ("m", [{"role": "assistant", "content": "x"}], None)
    demanding = evaluate(data, graders(EXACT, sample=False), targets=["rows"], max_failed_rows=2, name="two")
    assert [record["status"] for record in demanding.records] == ["error", "fail"]
    assert "no 'output_text'" in demanding.records[0]["sample"]["error"]
    assert server.requests == []


def test_a_job_of_graders_stands_when_every_row_failed(server: Any, evaluate: Any) -> None:
    server.models |= {name: lambda body: (400, {}, "broken") for name in ("one", "two")}
    data = [{"item": {"capital": "Lima", "land": "Peru"}}] * 3
    prompt = [{"role": "user", "content": "?"}]
    done = evaluate(
        data, graders(input_messages=prompt), targets=["one", "two"], max_failed_rows=6, category_field="land"
    )
    assert {record["status"] for record in done.records} == {"error"}
    assert done.result.values["rows_failed"] == 6
    assert done.metrics["one"] == {"graders.failed_rows": {"value": 3.0}}
    assert done.result.values["comparisons"] == []
    assert done.json["targets"]["one"]["graders.pass_rate"]["rows"] == 0
    assert "broken" in done.html
