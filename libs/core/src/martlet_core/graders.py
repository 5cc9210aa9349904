"""OpenAI's graders as pure functions: string_check, text_similarity, label_model, score_model, multi.

The evaluator grades answers of evals by them, the trainer answers of the model that it trains, and the gateway tries one on one answer.
Templates are ``{{item.field}}`` (the row) and ``{{sample.output_text}}`` (the answer); anything else is left as it stands. Shapes as in
OpenAI's API (openai 3.54). The python grader runs code that comes with a request, so it is refused.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from typing import Any

from martlet_core.errors import InvalidArgument
from martlet_core.grader_rules import TEMPLATE, steps_of

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

#: What is sent of a row's own messages beside role and text.
_SENT = ("content", "name", "tool_calls", "tool_call_id")
MODEL_GRADERS = ("label_model", "score_model")


#: How alike two texts are, 0.0 to 1.0, by a metric's name.
Similarity = Callable[[str, str, str], float]


@dataclass(frozen=True)
class Grade:
    """What a grader says of one answer.

    Attributes:
        name: the grader's.
        score: its number.
        passed: whether the answer passes.
        error: why there is no grade; empty where there is one.
        details: what else there is to see: the label, sub-scores.
    """

    name: str
    score: float
    passed: bool
    error: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelRequest:
    """What a model grader asks a model.

    Attributes:
        model: its name.
        messages: the prompt.
        choices: the only answers allowed; empty for a number.
        sampling: ``sampling_params`` as they came.
    """

    model: str
    messages: tuple[Mapping[str, Any], ...]
    choices: tuple[str, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def drawn_with(self, seed: int) -> dict[str, Any]:
        """``sampling`` by the names of /v1/chat/completions, with this seed where it names none."""
        asked = self.sampling
        return {
            "max_tokens": int(asked.get("max_completions_tokens") or asked.get("max_tokens") or 16),
            "temperature": float(asked.get("temperature") or 0.0),
            "seed": int(asked.get("seed") or seed),
        }


@dataclass(frozen=True)
class _Case:
    """What a grader is worked out on; see ``grade``."""

    item: Any
    sample: Any
    said: Mapping[str, str]
    similarity: Similarity


def whole_numbers(value: Any) -> Any:
    """A value with 5 for 5.0: a Struct has only doubles, and a seed is a whole number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: whole_numbers(part) for key, part in value.items()}
    return [whole_numbers(part) for part in value] if isinstance(value, (list, tuple)) else value


def render(template: str, item: Any, sample: Any) -> str:
    """A template with the row's and the answer's fields put in.

    Raises:
        InvalidArgument: a field isn't there.
    """

    def put(match: re.Match[str]) -> str:
        value = look_up(match[1], {"item": item, "sample": sample})
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return TEMPLATE.sub(put, template)


def look_up(path: str, values: Mapping[str, Any]) -> Any:
    """What is at a path such as ``item.turns[0].text``.

    Raises:
        InvalidArgument: a step of it isn't there.
    """
    found: Any = values
    for step in steps_of(path):
        try:
            found = found[int(step)] if isinstance(found, list) else found[step]
        except (KeyError, IndexError, ValueError, TypeError):
            raise InvalidArgument(f"{{{{{path}}}}}: the row has no {step!r}", reason="UNKNOWN_FIELD") from None
    return found


def render_messages(turns: Sequence[Mapping[str, Any]], item: Any, sample: Any) -> tuple[Mapping[str, Any], ...]:
    """Messages with their templates filled; content parts of OpenAI's kinds become text; ``developer`` becomes ``system``."""
    return tuple({**_plain(turn), "content": render(_text(turn["content"]), item, sample)} for turn in turns)


def referred_messages(reference: str, item: Any) -> tuple[Mapping[str, Any], ...]:
    """The messages that a row holds at a path; what they say is no template.

    Raises:
        InvalidArgument: there are none, or they aren't text.
    """
    turns = look_up(reference, {"item": item})
    if (
        not isinstance(turns, list)
        or not turns
        or not all(isinstance(turn, Mapping) and "role" in turn for turn in turns)
    ):
        raise InvalidArgument(f"{reference} is no list of messages with role and content")
    return tuple(
        {
            **{key: turn[key] for key in _SENT if key in turn},
            **_plain(turn),
            **({"content": _text(turn["content"])} if turn.get("content") is not None else {}),
        }
        for turn in turns
    )


def _plain(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": "system" if turn["role"] == "developer" else turn["role"]}


def _text(content: Any) -> str:
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidArgument("a message has content that is no text")
    return "".join(map(str, texts))


def model_requests(grader: Mapping[str, Any], item: Any, sample: Any) -> dict[str, ModelRequest]:
    """What must be asked of models before a grader can be worked out, by the grader's name (``multi`` may have several)."""
    if grader["type"] == "multi":
        found: dict[str, ModelRequest] = {}
        for name, part in grader["graders"].items():
            found |= {f"{name}/{key}": value for key, value in model_requests(part, item, sample).items()}
        return found
    if grader["type"] not in MODEL_GRADERS:
        return {}
    messages = render_messages(grader["input"], item, sample)
    if grader["type"] == "label_model":
        return {"": ModelRequest(grader["model"], messages, tuple(grader["labels"]))}
    low, high = grader.get("range") or (0, 1)
    ask = {"role": "user", "content": f"Answer with a number from {low:g} to {high:g} and nothing else."}
    return {"": ModelRequest(grader["model"], (*messages, ask), (), grader.get("sampling_params") or {})}


def fuzzy_match(metric: str, text: str, reference: str) -> float:
    """The metric ``fuzzy_match``, difflib's ratio, which takes no package; definitions with others are refused beforehand."""
    if metric != "fuzzy_match":
        raise InvalidArgument(f"text_similarity by {metric} is not offered here")
    return SequenceMatcher(None, text, reference, autojunk=False).ratio()


def grade(
    grader: Mapping[str, Any],
    item: Any,
    sample: Any,
    said: Mapping[str, str] | None = None,
    similarity: Similarity = fuzzy_match,
) -> Grade:
    """Work a grader out.

    Args:
        grader: its definition, checked by ``grader_rules``.
        item: the row.
        sample: the answer: ``output_text`` and whatever templates name.
        said: what the models of ``model_requests`` answered, by the same keys.
        similarity: of text_similarity.
    """
    return _graded(grader, _Case(item, sample, said or {}, similarity))


def _graded(grader: Mapping[str, Any], case: _Case) -> Grade:
    try:
        return _GRADES[grader["type"]](grader, case)
    except InvalidArgument as error:
        return Grade(grader["name"], 0.0, False, error.message)


def below(said: Mapping[str, str], name: str) -> dict[str, str]:
    """Of what models answered, that for one of a multi's graders."""
    return {key.removeprefix(f"{name}/"): v for key, v in said.items() if key.startswith(f"{name}/")}


def _grade_string(grader: Mapping[str, Any], case: _Case) -> Grade:
    text, reference = (
        render(grader["input"], case.item, case.sample),
        render(grader["reference"], case.item, case.sample),
    )
    matched = {
        "eq": text == reference,
        "ne": text != reference,
        "like": reference in text,
        "ilike": reference.casefold() in text.casefold(),
    }[grader["operation"]]
    return Grade(grader["name"], float(matched), matched)


def _grade_similarity(grader: Mapping[str, Any], case: _Case) -> Grade:
    text, reference = (
        render(grader["input"], case.item, case.sample),
        render(grader["reference"], case.item, case.sample),
    )
    score = case.similarity(grader["evaluation_metric"], text, reference)
    return Grade(grader["name"], score, score >= (grader.get("pass_threshold") or 0.0))


def _said_of(grader: Mapping[str, Any], case: _Case) -> str:
    """What the grader's model answered. InvalidArgument where it wasn't asked: mostly since something that a template names isn't there."""
    if "" not in case.said:
        model_requests(grader, case.item, case.sample)
        raise InvalidArgument(f"the model {grader['model']} was not asked")
    return case.said[""]


def _grade_label(grader: Mapping[str, Any], case: _Case) -> Grade:
    label = _said_of(grader, case).strip()
    if label not in grader["labels"]:
        return Grade(grader["name"], 0.0, False, f"the model answered {label[:80]!r}, which is none of the labels")
    passed = label in grader["passing_labels"]
    return Grade(grader["name"], float(passed), passed, details={"label": label})


def _grade_score(grader: Mapping[str, Any], case: _Case) -> Grade:
    low, high = grader.get("range") or (0, 1)
    said = _said_of(grader, case)
    match = _NUMBER.search(said)
    if match is None or not low <= float(match[0]) <= high:
        return Grade(
            grader["name"], 0.0, False, f"the model answered {said[:80]!r}, no number from {low:g} to {high:g}"
        )
    score = float(match[0])
    threshold = grader.get("pass_threshold")
    return Grade(grader["name"], score, score >= ((low + high) / 2 if threshold is None else threshold))


def _grade_multi(grader: Mapping[str, Any], case: _Case) -> Grade:
    parts = {
        name: _graded(part, replace(case, said=below(case.said, name))) for name, part in grader["graders"].items()
    }
    errors = [f"{name}: {part.error}" for name, part in parts.items() if part.error]
    if errors:
        return Grade(grader["name"], 0.0, False, "; ".join(errors))
    score = calculate(grader["calculate_output"], {name: part.score for name, part in parts.items()})
    threshold = grader.get("pass_threshold")
    passed = all(part.passed for part in parts.values()) if threshold is None else score >= threshold
    return Grade(
        grader["name"], score, passed, details={"sub_scores": {name: part.score for name, part in parts.items()}}
    )


_GRADES: Mapping[str, Callable[[Mapping[str, Any], _Case], Grade]] = {
    "string_check": _grade_string,
    "text_similarity": _grade_similarity,
    "label_model": _grade_label,
    "score_model": _grade_score,
    "multi": _grade_multi,
}


_OPERATORS: Mapping[type, Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.BitXor: lambda a, b: a**b,
    ast.Pow: lambda a, b: a**b,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}


def calculate(expression: str, names: Mapping[str, float]) -> float:
    """The value of an expression over grader names: + - * / ^, brackets, and min max abs floor ceil exp sqrt log.

    Raises:
        InvalidArgument: something else is in it, a name isn't known, or there is no value (a division by zero).
    """
    try:
        # ^ binds like Python's **, not like its ^.
        tree = ast.parse(expression.replace("^", "**"), mode="eval")
        value = float(_value(tree.body, names))
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise InvalidArgument(f"{expression!r} is no expression: {error}") from error
    except (ArithmeticError, ValueError, TypeError) as error:
        raise InvalidArgument(f"{expression!r} has no value: {error}") from error
    if not math.isfinite(value):
        raise InvalidArgument(f"{expression!r} has no value: {value}")
    return value


def _value(node: ast.expr, names: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise InvalidArgument(f"{node.id!r} is none of the graders: {', '.join(names)}")
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _value(node.operand, names)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.left, names), _value(node.right, names))
        if isinstance(value, complex):
            raise ArithmeticError("a root of a negative number")
        return value
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _FUNCTIONS
        and not node.keywords
    ):
        return float(_FUNCTIONS[node.func.id](*(_value(argument, names) for argument in node.args)))
    raise InvalidArgument(
        f"{ast.unparse(node)!r} is not allowed; use + - * / ^, {' '.join(_FUNCTIONS)} and graders' names"
    )
