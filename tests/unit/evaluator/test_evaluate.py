"""Whole evaluations against a server over real HTTP: what is counted, kept, compared and written."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from martlet_core.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from martlet_core.recipe import StopRequested


def right(body: Any) -> str:
    """The answer to a sum."""
    first, second = (int(part) for part in body["messages"][-1]["content"].split(" + "))
    return "even" if (first + second) % 2 == 0 else "odd"


def always_even(body: Any) -> str:
    return "even"


def test_targets_are_measured_and_compared_on_the_same_rows(server: Any, evaluate: Any, sums: Any) -> None:
    server.models |= {"base": always_even, "tuned": right}
    done = evaluate(sums, ["exact_match"], ["base", "tuned"], category_field="size", max_rows=30)
    even = sum(row["messages"][1]["content"] == "even" for row in sums[:30])
    assert done.result.values["rows_read"] == 40
    assert done.result.values["rows_used"] == 30
    assert done.result.values["rows_failed"] == 0
    accuracy = done.metrics["base"]["exact_match.accuracy"]
    assert accuracy["value"] == pytest.approx(even / 30)
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    (found,) = done.result.values["comparisons"]
    assert (found["target"], found["baseline"], found["metric"]) == ("tuned", "base", "exact_match.accuracy")
    assert (found["flips_gained"], found["flips_lost"]) == (30 - even, 0)
    assert found["difference"] == pytest.approx(1 - even / 30)
    assert 0 < found["low"] <= found["difference"] <= found["high"]
    assert found["p_value"] < 0.01
    by_size = {(line["category"], line["target"]): line["rows"] for line in done.json["categories"]}
    assert by_size == {("small", "base"): 20, ("large", "base"): 10, ("small", "tuned"): 20, ("large", "tuned"): 10}
    assert len(done.records) == 60
    record = done.records[-1]
    assert record["target"] == "tuned"
    assert record["output"] == record["expected"]
    assert record["input"] == sums[29]["messages"][:1]
    assert record["score"] == 1.0
    assert record["seconds"] > 0
    assert {request["headers"]["Authorization"] for request in server.requests} == {"Bearer secret"}


def test_the_same_job_again_gives_the_same_numbers(server: Any, evaluate: Any, sums: Any) -> None:
    server.models |= {"base": always_even, "tuned": right}
    first, second = (evaluate(sums, ["exact_match"], ["base", "tuned"], name=name) for name in ("one", "two"))
    assert first.result.values == second.result.values


def test_rows_without_an_answer_are_counted_and_left_out_of_the_metrics(server: Any, evaluate: Any, sums: Any) -> None:
    def fails_on_seven(body: Any) -> Any:
        return (400, {}, "context too long") if body["messages"][-1]["content"].startswith("7") else right(body)

    server.models["model"] = fails_on_seven
    done = evaluate(sums, ["exact_match"], max_failed_rows=1)
    assert done.result.values["rows_failed"] == 1
    assert done.metrics["model"]["exact_match.accuracy"]["value"] == 1.0
    assert done.metrics["model"]["exact_match.failed_rows"]["value"] == 1
    assert [record["error"] for record in done.records if record["error"]] == ["HTTP 400: context too long"]
    assert "context too long" in done.html
    with pytest.raises(
        FailedPrecondition, match=r"1 rows got no answer.*max_failed_rows is 0.*line 8: HTTP 400"
    ) as caught:
        evaluate(sums, ["exact_match"], name="strict")
    assert caught.value.reason == "TOO_MANY_FAILED_ROWS"


def test_a_stopped_job_goes_on_without_asking_again(server: Any, evaluate: Any, sums: Any, tmp_path: Path) -> None:
    over = threading.Event()

    def stuck_after_fifteen(body: Any) -> str:
        if len(server.requests) > 15:
            over.wait(30)
        return right(body)

    server.models["model"] = stuck_after_fifteen
    try:
        with pytest.raises(StopRequested):
            evaluate(sums, ["exact_match"], concurrency=1, should_stop=lambda: len(server.requests) > 15, name="first")
    finally:
        over.set()
    server.models["model"] = right
    asked = {request["messages"][-1]["content"] for request in server.requests}
    assert len(asked) == 16
    checkpoints = sorted((tmp_path / "first/checkpoints").iterdir())
    server.requests.clear()
    (tmp_path / "second").mkdir()
    (tmp_path / "second/resume").symlink_to(checkpoints[-1])
    done = evaluate(sums, ["exact_match"], name="second", config={"checkpoint_seconds": 0.001})
    again = [request["messages"][-1]["content"] for request in server.requests]
    assert len(asked & set(again)) == 1  # what was on its way when the job stopped
    assert len(again) == len(set(again))
    assert len(done.records) == 40
    assert done.metrics["model"]["exact_match.accuracy"]["value"] == 1.0
    assert "going on with" in done.report.lines[0]
    path, step = done.report.checkpoints[-1]
    assert step == 40
    assert sum(part.read_text().count("\n") for part in path.iterdir()) == 40


def test_an_external_address_must_be_allowed_and_gets_the_workers_key(
    server: Any, evaluate: Any, sums: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.models["model"] = right
    target = {
        "name": "theirs",
        "model": "model",
        "engine": "external",
        "base_url": server.url,
        "api_key_env": "MARTLET_EVALUATION_KEY_THEIRS",
    }
    with pytest.raises(PermissionDenied, match="not among the addresses"):
        evaluate(sums[:2], ["exact_match"], [target], name="denied")
    allowed = {"allowed_base_urls": [server.url + "/"]}
    with pytest.raises(FailedPrecondition, match="no variable MARTLET_EVALUATION_KEY_THEIRS"):
        evaluate(sums[:2], ["exact_match"], [target], config=allowed, name="without key")
    assert server.requests == []
    monkeypatch.setenv("MARTLET_EVALUATION_KEY_THEIRS", "their-key")
    evaluate(sums[:2], ["exact_match"], [target], config=allowed, name="allowed")
    headers = server.requests[0]["headers"]
    assert headers["Authorization"] == "Bearer their-key"


def test_the_page_stands_alone_and_escapes_what_models_write(server: Any, evaluate: Any, sums: Any) -> None:
    server.models |= {"base": lambda body: "<script>alert(1)</script> <img src=//x.example/y>", "tuned": right}
    html = evaluate(sums, ["classification", "generation"], ["base", "tuned"], category_field="size").html
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html
    assert not re.search(r"\b(src|action)\s*=", html.replace("src=//x.example", ""))
    assert all(link.startswith("#") for link in re.findall(r"href\s*=\s*[\"']?([^\s\"'>]*)", html))
    assert not re.search(r"url\(|@import|https?://", html)
    assert html.count("<svg") > 4
    assert "prefers-color-scheme: dark" in html


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "hello"}], "no known format"),
        ([{"messages": [{"role": "user", "content": "hello"}]}], "no assistant turn"),
        ([{"messages": [{"role": "assistant", "content": "hello"}]}], "no question"),
        (
            [{"prompt": "a", "completion": "b", "size": "x"}, {"prompt": "a", "completion": "b", "siz": "x"}],
            "did you mean siz",
        ),
        ([], "empty"),
    ],
)
def test_rows_that_cannot_be_evaluated_are_named(evaluate: Callable[..., Any], rows: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        evaluate(rows, ["exact_match"], category_field="size" if "siz" in words else None)
