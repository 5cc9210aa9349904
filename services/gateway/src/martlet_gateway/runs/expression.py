"""Conditions of a gate: ``tuned.accuracy >= base.accuracy - 0.02``. A grammar of its own, so that nothing can be run.

    condition := sum (">=" | ">" | "<=" | "<" | "==" | "!=") sum
    sum       := product (("+" | "-") product)*
    product   := factor (("*" | "/") factor)*
    factor    := number | name | "-" factor | "(" sum ")"
    name      := step ("." word | '["' text '"]')+

``step`` is a step of the run; what stands behind it is the name of one of its metrics.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?%?)|(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*|\[\"[^\"]+\"\])*)"
    r"|(?P<sign>>=|<=|==|!=|[-+*/()<>]))"
)
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}
_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
MAX_CHARACTERS = 500
_MAX_DEPTH = 20


class ExpressionError(ValueError):
    """What is wrong with a condition, for people."""


@dataclass(frozen=True)
class MetricName:
    """A metric of a step."""

    step: str
    metric: str

    def __str__(self) -> str:
        return f"{self.step}.{self.metric}"


@dataclass(frozen=True)
class Verdict:
    """What became of a condition.

    Attributes:
        passed: whether it holds.
        left, right: the two sides, worked out.
        margin: by how much it holds; negative: by how much it fails.
    """

    passed: bool
    left: float
    right: float
    margin: float


_Node = float | MetricName | tuple[str, "_Node", "_Node"]


@dataclass(frozen=True)
class Condition:
    """A parsed condition.

    Attributes:
        text: as it was written.
        names: the metrics in it, in order, each once.
    """

    text: str
    sign: str
    left: _Node
    right: _Node
    names: tuple[MetricName, ...]

    def judge(self, metrics: Mapping[MetricName, float]) -> Verdict:
        """Work it out. ``metrics`` has every name in ``names``. ExpressionError for a division by zero."""
        left, right = _work_out(self.left, metrics), _work_out(self.right, metrics)
        margin = left - right if self.sign in (">=", ">", "==", "!=") else right - left
        if self.sign == "==":
            margin = -abs(margin)
        return Verdict(_COMPARE[self.sign](left, right), left, right, margin)


def parse_condition(text: str) -> Condition:
    """Read a condition. ExpressionError says what is wrong with it."""
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"has more than {MAX_CHARACTERS} characters.")
    return _Parser(text).condition()


def _work_out(node: _Node, metrics: Mapping[MetricName, float]) -> float:
    if isinstance(node, MetricName):
        return metrics[node]
    if isinstance(node, tuple):
        sign, left, right = node
        try:
            return _ARITHMETIC[sign](_work_out(left, metrics), _work_out(right, metrics))
        except ZeroDivisionError:
            raise ExpressionError("divides by zero.") from None
    return node


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0
        self._names: dict[MetricName, None] = {}

    def condition(self) -> Condition:
        left = self._sum(0)
        sign = self._take()
        if sign is None:
            raise ExpressionError("compares nothing; write `step.metric >= 0.8`, say.")
        if sign not in _COMPARE:
            raise ExpressionError(f"has {sign!r} where one of {' '.join(_COMPARE)} is due.")
        right = self._sum(0)
        if (rest := self._take()) is not None:
            raise ExpressionError(f"goes on with {rest!r} behind its end; one comparison a condition.")
        if not self._names:
            raise ExpressionError("names no metric; write `step.metric >= 0.8`, say.")
        return Condition(self._text, sign, left, right, tuple(self._names))

    def _sum(self, depth: int) -> _Node:
        node = self._product(depth)
        while self._peek() in ("+", "-"):
            sign = self._take()
            assert sign
            node = (sign, node, self._product(depth))
        return node

    def _product(self, depth: int) -> _Node:
        node = self._factor(depth)
        while self._peek() in ("*", "/"):
            sign = self._take()
            assert sign
            node = (sign, node, self._factor(depth))
        return node

    def _factor(self, depth: int) -> _Node:
        if depth > _MAX_DEPTH:
            raise ExpressionError(f"is nested more than {_MAX_DEPTH} levels deep.")
        token = self._take()
        if token is None:
            raise ExpressionError("ends where a number or `step.metric` is due.")
        if token == "-":
            return ("-", 0.0, self._factor(depth + 1))
        if token == "(":
            node = self._sum(depth + 1)
            if self._take() != ")":
                raise ExpressionError("has a `(` without its `)`.")
            return node
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return float(token[:-1]) / 100 if token.endswith("%") else float(token)
        if token[0].isalpha() or token[0] == "_":
            return self._name(token)
        raise ExpressionError(f"has {token!r} where a number or `step.metric` is due.")

    def _name(self, token: str) -> MetricName:
        step, metric = re.match(r"(\w+)(.*)", token, re.DOTALL).groups()  # type: ignore[union-attr]
        metric = re.sub(r'\["([^"]+)"\]', r".\1", metric).removeprefix(".")
        if not metric:
            raise ExpressionError(f"`{step}` is no metric; write `<step>.<metric>`.")
        name = MetricName(step, metric)
        self._names[name] = None
        return name

    def _peek(self) -> str | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self) -> str | None:
        token = self._peek()
        self._next += 1
        return token


def _tokens(text: str) -> list[str]:
    tokens, place = [], 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        if found is None:
            rest = text[place:].strip()
            raise ExpressionError(f"can't be read from {rest[:30]!r} on.")
        tokens.append(found.group().strip())
        place = found.end()
    return tokens
