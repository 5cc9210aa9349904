"""OpenAI's graders as a definition: what is wrong with one, found before a model is asked anything.

The gateway checks the graders of an eval by these rules, and the evaluator those of a job: one takes what the other does. Here is
what can be told from the definition and the item schema alone, in the client's own words.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from martlet_core.errors import FieldViolation

#: What a template may name, as the evaluator reads it.
TEMPLATE = re.compile(r"\{\{\s*([A-Za-z0-9_.\[\]-]+)\s*\}\}")
_STEP = re.compile(r"[^.\[\]]+")
_ANY_TEMPLATE = re.compile(r"\{\{\s*((?:item|sample)\b[^{}]*?)\s*\}\}")
_MAX_FORMULA = 1000
#: Path of the prompt in a row: ``item.messages``.
ITEM_REFERENCE = re.compile(r"item\.[A-Za-z0-9_.\[\]-]+")

OPERATIONS = ("eq", "ne", "like", "ilike")
SIMILARITIES = ("fuzzy_match", "bleu", "gleu", *(f"rouge_{n}" for n in range(1, 6)), "rouge_l")
#: What OpenAI has and evaluators of Martlet don't, and why.
_NOT_OFFERED = {"cosine": "it takes an embedding model", "meteor": "it takes WordNet's data"}
ROLES = ("system", "developer", "user", "assistant")
TEXT_PARTS = ("text", "input_text", "output_text")
FUNCTIONS = ("min", "max", "abs", "floor", "ceil", "exp", "sqrt", "log")
_FORMULA_NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Load, ast.Constant),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.UAdd),
)

#: Type -> the fields it must have, and those it may have.
_FIELDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "string_check": (("input", "reference", "operation"), ()),
    "text_similarity": (("input", "reference", "evaluation_metric"), ("pass_threshold",)),
    "label_model": (("model", "input", "labels", "passing_labels"), ()),
    "score_model": (("model", "input"), ("range", "pass_threshold", "sampling_params")),
    "multi": (("graders", "calculate_output"), ("pass_threshold",)),
}
_TYPES = ", ".join(_FIELDS)


@dataclass
class Namespace:
    """What templates may name.

    Attributes:
        item_schema: of the rows' items.
        has_sample: whether there is an answer beside the item.
        no_sample: why there is none.
        found: what is wrong so far.
    """

    item_schema: Mapping[str, Any]
    has_sample: bool
    no_sample: str = "which this eval has none of; set data_source_config.include_sample_schema."
    found: list[FieldViolation] = field(default_factory=list)

    def wrong(self, at: str, description: str) -> None:
        """Note a violation."""
        self.found.append(FieldViolation(at, description))

    def check_text(self, text: str, at: str) -> None:
        """Check the templates of a text."""
        for match in _ANY_TEMPLATE.finditer(text):
            if not TEMPLATE.fullmatch(match[0]):
                self.wrong(at, f"`{match[0]:.80}`: fields in templates are made of letters, digits and _ - . [ ].")
        for match in TEMPLATE.finditer(text):
            self.check_path(match[1], at)

    def check_path(self, path: str, at: str) -> None:
        """Check one path, such as ``item.question``."""
        root, *steps = steps_of(path) or [""]
        if root == "sample":
            if not self.has_sample:
                self.wrong(at, f"`{path:.80}` is about answers, {self.no_sample}")
        elif root != "item":
            self.wrong(at, f"`{path:.80}` is not known; templates name `item.<field>` or `sample.<field>`.")
        elif (missing := missing_step(self.item_schema, steps)) is not None:
            name, known = missing
            self.wrong(at, f"`{path:.80}`: the item schema has no `{name:.80}`.{suggest(name, known)}")


def prompt_namespace(item_schema: Mapping[str, Any]) -> Namespace:
    """What the templates of a prompt may name."""
    return Namespace(item_schema, False, "and a prompt is what they are answers to.")


def missing_step(schema: Any, steps: Sequence[str]) -> tuple[str, list[str]] | None:
    """The first step of a path that a JSON schema rules out, with what is there instead; None where it rules nothing out."""
    for step in steps:
        if not isinstance(schema, Mapping):
            return None
        properties = schema.get("properties")
        if isinstance(properties, Mapping):
            if step not in properties:
                return None if schema.get("additionalProperties") else (step, [str(name) for name in properties])
            schema = properties[step]
        else:
            schema = schema.get("items")
    return None


def check_criteria(criteria: Sequence[Mapping[str, Any]], namespace: Namespace) -> None:
    """Note in ``namespace`` what is wrong with an eval's testing criteria."""
    names: dict[str, int] = {}
    for index, grader in enumerate(criteria):
        at = f"testing_criteria[{index}]"
        check_grader(grader, at, namespace)
        name = grader.get("name")
        if isinstance(name, str) and names.setdefault(name, index) != index:
            namespace.wrong(f"{at}.name", f"`{name:.80}` is testing_criteria[{names[name]}]'s too; names must differ.")
        if grader.get("type") == "text_similarity" and grader.get("pass_threshold") is None:
            namespace.wrong(f"{at}.pass_threshold", "is required: the score, 0 to 1, from which on a row passes.")


def check_grader(grader: Any, at: str, namespace: Namespace, *, is_inner: bool = False) -> None:
    """Note in ``namespace`` what is wrong with a grader."""
    if not isinstance(grader, Mapping):
        namespace.wrong(at, f"must be an object; got {grader!r:.60}.")
        return
    kind = grader.get("type")
    if kind == "python":
        text = "`python` is not offered: it would run code of the request, and this deployment has no sandbox for that."
        namespace.wrong(f"{at}.type", f"{text} Use one of: {_TYPES}.")
        return
    known = [name for name in _FIELDS if not (is_inner and name == "multi")]
    if kind not in known:
        text = "is required" if kind is None else f"{kind!r:.60} is not known"
        namespace.wrong(f"{at}.type", f"{text}; it is one of: {', '.join(known)}.{suggest(kind, known)}")
        return
    required, optional = _FIELDS[kind]
    fields = ("type", "name", *required, *optional)
    for key in grader:
        if key not in fields:
            namespace.wrong(f"{at}.{key}", f"is not a field of {kind}.{suggest(key, fields)}")
    missing = [name for name in ("name", *required) if grader.get(name) in (None, "", [], {})]
    for name in missing:
        namespace.wrong(f"{at}.{name}", "is required.")
    if not missing:
        _check_word(grader["name"], f"{at}.name", namespace)
        _CHECKS[kind](grader, at, namespace)


def _check_string(grader: Mapping[str, Any], at: str, namespace: Namespace) -> None:
    _check_templates(grader, at, namespace)
    _check_choice(grader, "operation", OPERATIONS, at, namespace)


def _check_similarity(grader: Mapping[str, Any], at: str, namespace: Namespace) -> None:
    _check_templates(grader, at, namespace)
    _check_number(grader, "pass_threshold", at, namespace)
    metric = str(grader["evaluation_metric"])
    if metric in _NOT_OFFERED:
        text = f"`{metric}` is not offered: {_NOT_OFFERED[metric]}. Use one of: {', '.join(SIMILARITIES)}."
        namespace.wrong(f"{at}.evaluation_metric", text)
    else:
        _check_choice(grader, "evaluation_metric", SIMILARITIES, at, namespace)


def _check_label_model(grader: Mapping[str, Any], at: str, namespace: Namespace) -> None:
    _check_word(grader["model"], f"{at}.model", namespace)
    check_messages(grader["input"], f"{at}.input", namespace)
    lists = [grader[name] for name in ("labels", "passing_labels")]
    for name, labels in zip(("labels", "passing_labels"), lists, strict=True):
        if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
            namespace.wrong(f"{at}.{name}", "must be a list of strings.")
            return
    for label in lists[1]:
        if label not in lists[0]:
            text = f"`{label:.80}` is none of the labels.{suggest(label, lists[0])}"
            namespace.wrong(f"{at}.passing_labels", text)


def _check_score_model(grader: Mapping[str, Any], at: str, namespace: Namespace) -> None:
    _check_word(grader["model"], f"{at}.model", namespace)
    check_messages(grader["input"], f"{at}.input", namespace)
    _check_number(grader, "pass_threshold", at, namespace)
    bounds = grader.get("range")
    if bounds is not None and not (
        isinstance(bounds, list) and len(bounds) == 2 and all(map(_is_number, bounds)) and bounds[0] < bounds[1]
    ):
        namespace.wrong(f"{at}.range", f"must be two numbers, the smaller first; got {bounds!r:.60}.")
    if grader.get("sampling_params") is not None:
        check_sampling(grader["sampling_params"], f"{at}.sampling_params", "max_completions_tokens", namespace)


def _check_multi(grader: Mapping[str, Any], at: str, namespace: Namespace) -> None:
    _check_number(grader, "pass_threshold", at, namespace)
    inner = grader["graders"]
    if not isinstance(inner, Mapping):
        namespace.wrong(f"{at}.graders", f"must be an object of graders by name; got {inner!r:.60}.")
        return
    for name, part in inner.items():
        check_grader(part, f"{at}.graders.{name}", namespace, is_inner=True)
    fault = formula_fault(grader["calculate_output"], list(inner))
    if fault:
        namespace.wrong(f"{at}.calculate_output", fault)


_CHECKS: Mapping[str, Callable[[Mapping[str, Any], str, Namespace], None]] = {
    "string_check": _check_string,
    "text_similarity": _check_similarity,
    "label_model": _check_label_model,
    "score_model": _check_score_model,
    "multi": _check_multi,
}


def formula_fault(formula: Any, names: Sequence[str]) -> str | None:
    """What is wrong with ``calculate_output``: + - * / ^, brackets, ``FUNCTIONS`` and graders' names; None if nothing."""
    if not isinstance(formula, str) or len(formula) > _MAX_FORMULA:
        return f"must be a formula of at most {_MAX_FORMULA} characters; got {formula!r:.60}."
    try:
        tree = ast.parse(formula.replace("^", "**"), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"`{formula:.80}` is no formula: {error}."
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            known = FUNCTIONS if id(node) in called else names
            if node.id not in known:
                what = "function" if id(node) in called else "grader"
                return f"`{node.id:.80}` is no {what} of it; there are: {', '.join(known)}.{suggest(node.id, known)}"
        elif (
            not isinstance(node, _FORMULA_NODES)
            or (isinstance(node, ast.Constant) and not _is_number(node.value))
            or (isinstance(node, ast.Call) and (node.keywords or not isinstance(node.func, ast.Name)))
        ):
            return f"may hold + - * / ^, brackets, numbers, {', '.join(FUNCTIONS)} and graders' names alone."
    return None


def check_messages(messages: Any, at: str, namespace: Namespace) -> None:
    """Note what is wrong with a prompt: messages with a role and text."""
    if not isinstance(messages, list) or not messages:
        namespace.wrong(at, "must be a list of messages with role and content.")
        return
    for index, message in enumerate(messages):
        where = f"{at}[{index}]"
        if not isinstance(message, Mapping):
            namespace.wrong(where, f"must be a message with role and content; got {message!r:.60}.")
            continue
        if message.get("role") not in ROLES:
            known = f"must be one of: {', '.join(ROLES)}; got {message.get('role')!r:.60}."
            namespace.wrong(f"{where}.role", known + suggest(message.get("role"), ROLES))
        if message.get("type", "message") != "message":
            namespace.wrong(f"{where}.type", f"must be `message`; got {message['type']!r:.60}.")
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        for number, part in enumerate(parts):
            here = f"{where}.content[{number}]" if isinstance(content, list) else f"{where}.content"
            _check_part(part, here, namespace)


def _check_part(part: Any, at: str, namespace: Namespace) -> None:
    if isinstance(part, Mapping):
        if part.get("type") not in TEXT_PARTS:
            text = f"{part.get('type')!r:.60} is not offered; prompts of evals are text ({', '.join(TEXT_PARTS)})."
            namespace.wrong(f"{at}.type", text)
            return
        part, at = part.get("text"), f"{at}.text"
    if not isinstance(part, str):
        namespace.wrong(at, f"must be text; got {part!r:.60}.")
        return
    namespace.check_text(part, at)


def check_sampling(values: Any, at: str, length: str, namespace: Namespace) -> None:
    """Note what is wrong with sampling parameters; ``length`` is what the longest answer is called there."""
    if not isinstance(values, Mapping):
        namespace.wrong(at, f"must be an object; got {values!r:.60}.")
        return
    limits = {length: (1, 1 << 20, int), "temperature": (0, 2, float), "seed": (0, 2**31 - 1, int)}
    for key, value in values.items():
        if value is None or is_default(key, value):
            continue
        if key not in limits:
            text = f"is not offered; leave it out. There are: {', '.join(limits)}.{suggest(key, list(limits))}"
            namespace.wrong(f"{at}.{key}", text)
            continue
        low, high, kind = limits[key]
        if not _is_number(value) or not low <= value <= high or (kind is int and not isinstance(value, int)):
            word = "an integer" if kind is int else "a number"
            namespace.wrong(f"{at}.{key}", f"must be {word} from {low} to {high}; got {value!r:.60}.")


def is_default(key: str, value: Any) -> bool:
    """Whether a sampling parameter that isn't offered asks for what happens anyway."""
    if key == "top_p":
        return value == 1
    if key == "tools":
        return value == []
    if key == "response_format":
        return value == {"type": "text"}
    return key == "text" and isinstance(value, Mapping) and value.get("format", {"type": "text"}) == {"type": "text"}


def texts(value: Any) -> Iterator[str]:
    """Every text in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts(item)


def sample_fields(criteria: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields of the sample that templates name: ``output_text``."""
    paths = [steps_of(match[1]) for text in texts(criteria) for match in TEMPLATE.finditer(text)]
    return list(dict.fromkeys(path[1] for path in paths if len(path) > 1 and path[0] == "sample"))


def steps_of(path: str) -> list[str]:
    """``item.turns[0].text`` -> ``item``, ``turns``, ``0``, ``text``."""
    return _STEP.findall(path)


def grader_models(criteria: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Where a grader names a model, and which."""
    for index, grader in enumerate(criteria):
        yield from _models(grader, f"testing_criteria[{index}]")


def _models(grader: Mapping[str, Any], at: str) -> Iterator[tuple[str, str]]:
    if "model" in grader:
        yield f"{at}.model", grader["model"]
    inner = grader.get("graders")
    if isinstance(inner, Mapping):
        for name, part in inner.items():
            yield from _models(part, f"{at}.graders.{name}")


def suggest(word: Any, known: Sequence[str]) -> str:
    """`` Did you mean ...?``; empty when nothing is close."""
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    return f" Did you mean `{close[0]}`?" if close else ""


def _check_templates(grader: Mapping[str, Any], at: str, namespace: Namespace) -> None:
    for name in ("input", "reference"):
        if isinstance(grader[name], str):
            namespace.check_text(grader[name], f"{at}.{name}")
        else:
            namespace.wrong(f"{at}.{name}", f"must be text; got {grader[name]!r:.60}.")


def _check_choice(grader: Mapping[str, Any], name: str, known: Sequence[str], at: str, namespace: Namespace) -> None:
    if grader[name] not in known:
        text = f"{grader[name]!r:.60} is not one of: {', '.join(known)}.{suggest(grader[name], known)}"
        namespace.wrong(f"{at}.{name}", text)


def _check_number(grader: Mapping[str, Any], name: str, at: str, namespace: Namespace) -> None:
    value = grader.get(name)
    if value is not None and not _is_number(value):
        namespace.wrong(f"{at}.{name}", f"must be a number; got {value!r:.60}.")


def _check_word(value: Any, at: str, namespace: Namespace) -> None:
    if not isinstance(value, str) or len(value) > 256:
        namespace.wrong(at, f"must be a string of at most 256 characters; got {value!r:.60}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
