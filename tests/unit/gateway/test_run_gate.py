"""Conditions of gates, and what follows in the graph."""

from __future__ import annotations

from typing import Any, cast

import pytest
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_gateway.runs.definition import RunDefinition, StepDefinition
from martlet_gateway.runs.expression import ExpressionError, MetricName, parse_condition
from martlet_gateway.runs.graph import attempts_after, find_cycle, survey
from martlet_gateway.runs.status import StepState, StepStatus, status_from_dict
from martlet_gateway.runs.steps.base import StepPlace
from martlet_gateway.runs.steps.gate import GateStep

METRICS = {MetricName("a", "x"): 0.8, MetricName("b", "x"): 0.75, MetricName("c", "rouge-l"): 2.0}


@pytest.mark.parametrize(
    ("text", "passed", "margin"),
    [
        ("a.x >= 0.8", True, 0.0),
        ("a.x > 80%", False, 0.0),
        ("a.x >= b.x + 0.02", True, 0.03),
        ("a.x >= b.x - -0.1", False, -0.05),
        ("b.x <= a.x * 2 - 1", False, -0.15),
        ("a.x - b.x < (1 + 1) / 4", True, 0.45),
        ('c["rouge-l"] == 2', True, 0.0),
        ("a.x != b.x", True, 0.05),
        ("1e-3 < a.x", True, 0.799),
    ],
)
def test_conditions(text: str, passed: bool, margin: float) -> None:
    verdict = parse_condition(text).judge(METRICS)
    assert (verdict.passed, verdict.margin) == (passed, pytest.approx(margin))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "ends where"),
        ("a.x", "compares nothing"),
        ("a.x >= 1 >= 0", "behind its end"),
        ("a.x + 1", "compares nothing"),
        ("a >= 1", "`a` is no metric"),
        ("1 >= 0", "names no metric"),
        ("a.x >= (1", "without its"),
        ("a.x >= ", "ends where"),
        ("a.x >= __import__('os')", "can't be read"),
        ("a.x ** 2 > 1", "where a number"),
        ("(" * 30 + "a.x" + ")" * 30 + " > 1", "nested"),
        ("a.x > " + "1+" * 400 + "1", "characters"),
    ],
)
def test_what_is_no_condition_is_said(text: str, words: str) -> None:
    with pytest.raises(ExpressionError, match=words.replace("(", r"\(")):
        parse_condition(text)


async def _gate(require: list[str], **steps: dict[str, float]) -> StepStatus:
    known = {name: StepStatus(StepState.SUCCEEDED, attempt=1, metrics=metrics) for name, metrics in steps.items()}
    return await GateStep().perform(cast(Any, None), StepPlace("r", "g", 1, "t"), {"require": require}, known)


async def test_a_gate_says_by_how_much_it_holds_or_fails() -> None:
    status = await _gate(["a.acc >= 0.8", "a.acc >= b.acc - 0.02"], a={"acc": 0.83}, b={"acc": 0.84})
    assert status.note == "holds: `a.acc >= 0.8` by 0.03; `a.acc >= b.acc - 0.02` by 0.01"
    with pytest.raises(FailedPrecondition) as caught:
        await _gate(["a.acc >= 0.8", "a.acc >= b.acc - 0.02"], a={"acc": 0.81}, b={"acc": 0.84})
    assert caught.value.reason == "GATE_CLOSED"
    assert "`a.acc >= b.acc - 0.02` fails by 0.01 (0.81 >= 0.82 doesn't hold)" in caught.value.message
    with pytest.raises(InvalidArgument, match="divides by zero"):
        await _gate(["a.acc / b.acc > 1"], a={"acc": 1.0}, b={"acc": 0.0})


async def test_metrics_may_be_named_shortly_and_unknown_ones_are_refused_with_those_there_are() -> None:
    metrics = {"tuned.exact_match.accuracy": 0.9, "base.exact_match.accuracy": 0.5, "rows_used": 10.0}
    status = await _gate(["e.tuned.accuracy > e.base.exact_match.accuracy"], e=metrics)
    assert status.metrics == {"e.tuned.accuracy": 0.9, "e.base.exact_match.accuracy": 0.5}
    with pytest.raises(InvalidArgument, match=r"may mean `e.tuned.exact_match.accuracy` or `e.base"):
        await _gate(["e.accuracy > 0.5"], e=metrics)
    with pytest.raises(InvalidArgument, match=r"has no metric `acuracy`.*It has: base.exact_match.accuracy") as caught:
        await _gate(["e.acuracy > 0.5"], e=metrics)
    assert caught.value.reason == "UNKNOWN_METRIC"


def _diamond() -> RunDefinition:
    return RunDefinition(
        "d",
        [
            StepDefinition("d", "gate", ["b", "c"]),
            StepDefinition("b", "merge", ["a"]),
            StepDefinition("c", "merge", ["a"]),
            StepDefinition("a", "train"),
        ],
    )


def _at(state: str, **more: Any) -> StepStatus:
    return StepStatus(StepState(state), attempt=1, **more)


def test_steps_without_dependence_are_ready_together() -> None:
    assert [s.id for s in survey(_diamond(), {}).ready] == ["a"]
    running = survey(_diamond(), {"a": _at("RUNNING")})
    assert (running.ready, running.active, running.is_over) == ([], ["a"], False)
    assert [s.id for s in survey(_diamond(), {"a": _at("SUCCEEDED")}).ready] == ["b", "c"]


def test_descendants_of_a_failed_step_are_skipped_and_say_why_while_others_go_on() -> None:
    seen = survey(_diamond(), {"a": _at("SUCCEEDED"), "b": _at("FAILED"), "c": _at("RUNNING")})
    assert (seen.statuses["d"].state, seen.statuses["d"].note) == (StepState.SKIPPED, "step b failed")
    assert not seen.is_over
    over = survey(_diamond(), {"a": _at("SUCCEEDED"), "b": _at("FAILED"), "c": _at("SUCCEEDED")})
    assert (over.is_over, over.succeeded, list(over.stopped)) == (True, False, ["b"])
    root = survey(_diamond(), {"a": _at("CANCELLED")})
    assert {status.note for step, status in root.statuses.items() if step != "a"} == {"step a was cancelled"}
    assert list(root.statuses) == ["d", "b", "c", "a"]


def test_resuming_gives_the_steps_that_stopped_their_next_attempt() -> None:
    known = {"a": _at("SUCCEEDED"), "b": _at("FAILED"), "c": _at("CANCELLED")}
    attempts = attempts_after(survey(_diamond(), known).statuses, {"b": 2})
    assert attempts == {"b": 3, "c": 2}


def test_cycles_and_statuses_round_trip() -> None:
    assert find_cycle({"a": ["b"], "b": [], "c": ["a", "b"]}) == []
    assert find_cycle({"a": ["a"]}) == ["a", "a"]
    status = StepStatus(StepState.FAILED, "mergeJobs/1", 2, error={"code": "ABORTED"}, outputs={"model": "m"})
    assert status_from_dict({**status.to_dict(), "from_the_future": 1}) == status
