"""``gate``: conditions on the numbers of other steps; where one doesn't hold, nothing behind the gate is done."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from martlet_core.errors import FailedPrecondition, InvalidArgument

from martlet_gateway.proto_json import close_hint
from martlet_gateway.runs.expression import Condition, ExpressionError, MetricName, parse_condition
from martlet_gateway.runs.marks import Mistakes, shown
from martlet_gateway.runs.status import StepState, StepStatus
from martlet_gateway.runs.steps.base import ImmediateStep, StepPlace, StepWorld

_SHOWN = 12


class GateStep(ImmediateStep):
    """``with`` has ``require``: a list of conditions, all of which must hold."""

    kind = "gate"
    title = "Let the steps behind it begin only if conditions on the numbers of other steps hold."
    outputs: ClassVar[Mapping[str, str]] = {}
    known_metrics = frozenset()

    def check(self, options: Mapping[str, Any], path: str, mistakes: Mistakes) -> None:
        """See StepKind."""
        for name in options:
            if name != "require":
                mistakes.add(f"{path}.{name}", f"`{name}` is not known here; a gate has `require`.", of_key=True)
        require = options.get("require")
        if not isinstance(require, list) or not require:
            mistakes.add(f"{path}.require", f"must be a list of conditions; got {shown(require)}.")
            return
        for index, text in enumerate(require):
            where = f"{path}.require[{index}]"
            if not isinstance(text, str):
                mistakes.add(where, f"must be a condition as text, like `step.metric >= 0.8`; got {shown(text)}.")
                continue
            try:
                parse_condition(text)
            except ExpressionError as error:
                mistakes.add(where, f"`{text}`: the condition {error}")

    def schema(self) -> dict[str, Any]:
        """See StepKind."""
        condition = {"type": "string", "description": "step.metric >= 0.8, or a.metric >= b.metric - 0.02"}
        return {
            "type": "object",
            "properties": {"require": {"type": "array", "items": condition, "minItems": 1}},
            "required": ["require"],
            "additionalProperties": False,
        }

    def implied_needs(self, options: Mapping[str, Any]) -> list[str]:
        """The steps whose metrics are compared."""
        return list(dict.fromkeys(name.step for condition in conditions(options) for name in condition.names))

    async def perform(
        self, world: StepWorld, place: StepPlace, options: Mapping[str, Any], steps: Mapping[str, StepStatus]
    ) -> StepStatus:
        """Compare. FailedPrecondition says which conditions fail, and by how much; InvalidArgument that a metric isn't
        there, with those that are.
        """
        passed, failed, metrics = [], [], {}
        for condition in conditions(options):
            values = {name: find_metric(name, steps[name.step].metrics) for name in condition.names}
            metrics |= {str(name): value for name, value in values.items()}
            try:
                verdict = condition.judge(values)
            except ExpressionError as error:
                raise InvalidArgument.field("require", f"`{condition.text}` {error}") from error
            (passed if verdict.passed else failed).append((condition, verdict))
        if failed:
            raise FailedPrecondition(
                "The gate is closed: " + "; ".join(_failure(condition, verdict) for condition, verdict in failed) + ".",
                reason="GATE_CLOSED",
                metadata={"failed": str(len(failed)), "conditions": str(len(failed) + len(passed))},
            )
        note = "; ".join(f"`{condition.text}` by {abs(verdict.margin):.4g}" for condition, verdict in passed)
        now = time.time()
        return StepStatus(
            StepState.SUCCEEDED,
            start_time=now,
            end_time=now,
            metrics=metrics,
            note=f"holds: {note}",
            summary=f"{len(passed)} of {len(passed)} conditions hold",
        )


def conditions(options: Mapping[str, Any]) -> list[Condition]:
    """The conditions of a gate that can be read; ``check`` tells of the others."""
    found = []
    for text in options.get("require") or [] if isinstance(options.get("require"), list) else []:
        try:
            found.append(parse_condition(text) if isinstance(text, str) else None)
        except ExpressionError:
            continue
    return [condition for condition in found if condition is not None]


def find_metric(name: MetricName, metrics: Mapping[str, float]) -> float:
    """The metric that a condition means: of that name, or the only one whose name has these words in this order.

    Raises:
        InvalidArgument: there is none, or more than one.
    """
    matches = matching(name.metric, list(metrics))
    if len(matches) == 1:
        return metrics[matches[0]]
    if matches:
        raise InvalidArgument.field(
            "require", f"`{name}` may mean {' or '.join(f'`{name.step}.{m}`' for m in matches[:6])}; say which."
        )
    raise InvalidArgument.field("require", unknown_metric(name, list(metrics)), reason="UNKNOWN_METRIC")


def matching(metric: str, known: Sequence[str]) -> list[str]:
    """The names that a metric's name in a condition may mean. In a known name, `*` stands for a word that isn't known yet."""
    if metric in known:
        return [metric]
    words = metric.split(".")
    return [name for name in known if _in_order(words, name)]


def unknown_metric(name: MetricName, known: Sequence[str]) -> str:
    """What to say of a metric that isn't there."""
    if not known:
        return f"step {name.step} has no metrics, so there is no `{name}`."
    near = difflib.get_close_matches(name.metric, known, n=1, cutoff=0.5)
    last = {k.rpartition(".")[2]: k for k in known}
    hint = close_hint(name.metric, list(known)) if near else close_hint(name.metric.rpartition(".")[2], list(last))
    listed = ", ".join(sorted(known)[:_SHOWN]) + (" …" if len(known) > _SHOWN else "")
    return f"step {name.step} has no metric `{name.metric}`.{hint} It has: {listed}."


def _in_order(words: Sequence[str], name: str) -> bool:
    """Whether the words stand in a name in this order, the last one last; `*` in a name is any word."""
    parts = name.split(".")
    rest = iter(parts[:-1])
    return _fits(words[-1], parts[-1]) and all(any(_fits(word, part) for part in rest) for word in words[:-1])


def _fits(word: str, part: str) -> bool:
    return part in (word, "*")


def _failure(condition: Condition, verdict: Any) -> str:
    return (
        f"`{condition.text}` fails by {abs(verdict.margin):.4g} "
        f"({verdict.left:.4g} {condition.sign} {verdict.right:.4g} doesn't hold)"
    )
