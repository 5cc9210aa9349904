"""The harness's stock tasks on local rows, offline, asked of a server over real HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_evaluator.benchmarks import split_files, stock_tasks, task_file

from tests.unit.evaluator.conftest import write_rows

GSM8K = [{"question": f"What is {i} plus {i}?", "answer": f"{i} and {i} make {2 * i}.\n#### {2 * i}"} for i in range(6)]
BOOLQ = [
    {"question": f"is {i} even", "passage": f"{i} is a number.", "label": int(i % 2 == 0), "idx": i} for i in range(6)
]


def suite(task: str, **more: Any) -> dict[str, Any]:
    chat = more.pop("apply_chat_template", False)
    return {"suite": "lm_eval", "options": {"tasks": [{"task": task, **more}], "apply_chat_template": chat}}


def counts(body: Any) -> str:
    """Knows the sum, but for the third question."""
    text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    number = int(text.rsplit("What is ", 1)[1].split()[0])
    return f" Easy.\n#### {2 * number + (number == 3)}"


def test_generated_answers_are_scored_by_the_harness_and_paired_by_document(server: Any, evaluate: Any) -> None:
    server.models |= {"base": lambda body: " no idea", "tuned": counts}
    done = evaluate(GSM8K, [suite("gsm8k")], ["base", "tuned"])
    name = "lm_eval.gsm8k.exact_match.strict-match"
    assert done.metrics["tuned"][name]["value"] == pytest.approx(5 / 6)
    assert done.metrics["base"][name]["value"] == 0.0
    found = {c["metric"]: c for c in done.result.values["comparisons"]}[name]
    assert (found["flips_gained"], found["flips_lost"]) == (5, 0)
    assert len(done.records) == 12
    assert (done.result.values["rows_read"], done.result.values["rows_used"]) == (6, 6)
    assert done.records[-1]["output"] == " Easy.\n#### 10"
    body = server.requests[0]
    assert body["path"] == "/v1/completions"
    assert body["prompt"].startswith("Question: What is ")
    assert body["prompt"].endswith("\nAnswer:")
    assert body["stop"][0] == "Question:"
    assert (body["max_tokens"], body["temperature"]) == (256, 0.0)


def test_as_a_chat_with_examples_from_rows_of_their_own(server: Any, evaluate: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "job/inputs/benchmark-gsm8k/test.jsonl", GSM8K[:2])
    write_rows(tmp_path / "job/inputs/benchmark-gsm8k/train.jsonl", GSM8K[4:])
    server.models["model"] = counts
    task = suite("gsm8k", dataset="artifacts/b", num_fewshot=2, apply_chat_template=True)
    done = evaluate(None, [task])
    assert done.metrics["model"]["lm_eval.gsm8k.exact_match.flexible-extract"]["value"] == 1.0
    assert len(server.requests) == 2
    messages = server.requests[0]["messages"]
    assert [turn["role"] for turn in messages] == ["user", "assistant", "user", "assistant", "user"]
    assert {"#### 8", "#### 10"} == {turn["content"].split("\n")[-1] for turn in messages[1:4:2]}


def test_examples_never_come_from_the_evaluated_rows(server: Any, evaluate: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"must come from other rows.*give a file train\.jsonl"):
        evaluate(GSM8K, [suite("gsm8k", num_fewshot=2)])
    assert server.requests == []


def test_choices_are_scored_by_log_likelihood(server: Any, evaluate: Any) -> None:
    def engine(body: Any) -> Any:
        context, choice = body["prompt"].rsplit(" ", 1)
        even = int(context.rsplit("is ", 1)[1].split()[0]) % 2 == 0
        number = -0.1 if (choice == "yes") == even else -3.0
        tokens, numbers = [context, f" {choice}", "."], [None, number, -1.0]
        logprobs = {
            "tokens": tokens,
            "token_logprobs": numbers,
            "top_logprobs": [None, {f" {choice}": number}, {".": -1.0}],
        }
        return {"choices": [{"text": "", "logprobs": logprobs}], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}

    server.models["model"] = engine
    done = evaluate(BOOLQ, [suite("boolq")])
    assert done.metrics["model"]["lm_eval.boolq.acc"]["value"] == 1.0
    assert len(server.requests) == 12
    assert (server.requests[0]["echo"], server.requests[0]["logprobs"]) == (True, 1)
    record = done.records[0]
    assert (record["row"], record["category"]) == ("boolq/0", "boolq")


def test_a_document_without_an_answer_is_left_out_not_scored_as_wrong(server: Any, evaluate: Any) -> None:
    server.models["model"] = lambda body: (400, {}, "too long") if "What is 3" in body["prompt"] else counts(body)
    done = evaluate(GSM8K, [suite("gsm8k")], max_failed_rows=1)
    assert done.metrics["model"]["lm_eval.gsm8k.exact_match.strict-match"]["value"] == 1.0
    assert done.result.values["rows_failed"] == 1
    with pytest.raises(FailedPrecondition, match="document 3: HTTP 400: too long"):
        evaluate(GSM8K, [suite("gsm8k")], name="strict")


def test_rows_of_another_shape_are_refused_with_the_harnesss_words(server: Any, evaluate: Any) -> None:
    server.models["model"] = lambda body: "x"
    with pytest.raises(FailedPrecondition, match="gsm8k can't be run on this data"):
        evaluate([{"prompt": "a", "completion": "b"}], [suite("gsm8k")])


def test_stock_tasks_are_known_without_importing_the_harness() -> None:
    assert {"gsm8k", "boolq", "ifeval", "mmlu_abstract_algebra"} <= set(stock_tasks())
    with pytest.raises(InvalidArgument, match="did you mean gsm8k"):
        task_file("gsm8kk")
    with pytest.raises(InvalidArgument, match=r"may be a group; name its tasks \(mmlu_"):
        task_file("mmlu")


def test_files_are_splits_by_their_names(tmp_path: Path) -> None:
    write_rows(tmp_path / "a/rows.jsonl", [{}])
    assert split_files(tmp_path / "a", "validation") == {"validation": tmp_path / "a/rows.jsonl"}
    write_rows(tmp_path / "b/dev.jsonl", [{}])
    write_rows(tmp_path / "b/train.jsonl", [{}])
    assert split_files(tmp_path / "b", "test") == {
        "test": tmp_path / "b/dev.jsonl",
        "train": tmp_path / "b/train.jsonl",
    }
    write_rows(tmp_path / "b/more.jsonl", [{}])
    with pytest.raises(InvalidArgument, match="name the files train, validation or test"):
        split_files(tmp_path / "b", "test")
