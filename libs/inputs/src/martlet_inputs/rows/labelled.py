"""Rows that say what a text is: one class, several, or numbers; and rows that say it of each word."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from martlet_inputs.rows.formats import Conversation, RowError, require_text, to_messages
from martlet_inputs.rows.kinds import RowKind, conversation_texts
from martlet_inputs.rows.turns import check_turns

#: Classes that are numbers are counted from 0, and no head is larger than this.
MAX_CLASSES = 10_000


@dataclass(frozen=True)
class Labelled:
    """A text and what it is.

    Attributes:
        text: as it is, or a conversation.
        labels: its classes, by name or by number; of a regression, numbers.
    """

    text: str | Conversation
    labels: tuple[str | int | float, ...]


@dataclass(frozen=True)
class Tagged:
    """Words, each with its class."""

    words: tuple[str, ...]
    tags: tuple[str | int, ...]


_LABEL = "label"
_FORMATS: Mapping[str, tuple[str, ...]] = {
    "messages_label": ("messages", _LABEL),
    "text_label": ("text", _LABEL),
    "query_label": ("query", _LABEL),
}


def _recognise(values: Mapping[str, Any]) -> str | None:
    return next((name for name, fields in _FORMATS.items() if all(field in values for field in fields)), None)


def _read(read_label: Callable[[Any], tuple[Any, ...]], values: Mapping[str, Any], name: str) -> Labelled:
    labels = read_label(values[_LABEL])
    if name == "messages_label":
        return Labelled(check_turns(to_messages(values, "messages"), "messages", values), labels)
    field = name.removesuffix("_label")
    return Labelled(require_text(values[field], field), labels)


def _class(value: Any, field: str) -> str | int:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_CLASSES:
        return value
    raise RowError(
        field, f"is {value!r}; must be the class's name, or its number, counted from 0 and below {MAX_CLASSES:,}"
    )


def _one_class(label: Any) -> tuple[str | int, ...]:
    if isinstance(label, list):
        raise RowError(_LABEL, "is a list; rows with several classes need problem_type multi_label_classification")
    if isinstance(label, float):
        raise RowError(_LABEL, f"is {label!r}; rows with numbers need problem_type regression")
    return (_class(label, _LABEL),)


def _classes(label: Any) -> tuple[str | int, ...]:
    if not isinstance(label, list):
        raise RowError(_LABEL, f"is {label!r}; must be the list of the row's classes, which may be empty")
    found = tuple(_class(value, f"{_LABEL}[{index}]") for index, value in enumerate(label))
    if len(set(found)) < len(found):
        raise RowError(_LABEL, f"is {label!r}, which names a class twice; name each once")
    return found


def _numbers(label: Any) -> tuple[float, ...]:
    numbers = label if isinstance(label, list) else [label]
    for index, value in enumerate(numbers):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            field = f"{_LABEL}[{index}]" if isinstance(label, list) else _LABEL
            raise RowError(field, f"is {value!r}; must be a number, as problem_type is regression")
    if not numbers:
        raise RowError(_LABEL, "is empty; must be a number, or a list of numbers")
    return tuple(map(float, numbers))


def _texts(row: Labelled) -> Iterable[str]:
    return (row.text,) if isinstance(row.text, str) else conversation_texts(row.text)


def _class_names(row: Labelled) -> Iterable[str | int]:
    return (label for label in row.labels if not isinstance(label, float))


def _kind(
    what: str, read_label: Callable[[Any], tuple[Any, ...]], labels: Callable[[Labelled], Iterable[str | int]]
) -> RowKind[Labelled]:
    return RowKind(
        f"texts with {what}",
        "messages_label (messages, label); text_label (text, label); query_label (query, label)",
        _recognise,
        partial(_read, read_label),
        lambda name: (*_FORMATS[name], "tools"),
        _texts,
        labels,
    )


#: Kind of rows by transformers' name of what is learned from them.
LABELLED: Mapping[str, RowKind[Labelled]] = {
    "single_label_classification": _kind("a class", _one_class, _class_names),
    "multi_label_classification": _kind("classes", _classes, _class_names),
    "regression": _kind("numbers", _numbers, lambda row: (len(row.labels),)),
}

#: Names of the list of tags, beside ``tokens``, as data sets of Hugging Face have them.
_TAGS = ("tags", "ner_tags", "labels")


def _recognise_tagged(values: Mapping[str, Any]) -> str | None:
    name = next((name for name in _TAGS if name in values), None)
    return f"tokens_{name}" if name and "tokens" in values else None


def _read_tagged(values: Mapping[str, Any], name: str) -> Tagged:
    field = name.removeprefix("tokens_")
    words, tags = values["tokens"], values[field]
    for key, value in (("tokens", words), (field, tags)):
        if not isinstance(value, list) or not value:
            raise RowError(key, "must be a list with at least one entry")
    if len(words) != len(tags):
        raise RowError(field, f"has {len(tags)} entries for {len(words)} tokens; every token needs one")
    return Tagged(
        tuple(require_text(word, f"tokens[{index}]") for index, word in enumerate(words)),
        tuple(_class(tag, f"{field}[{index}]") for index, tag in enumerate(tags)),
    )


TAGGED: RowKind[Tagged] = RowKind(
    "words with tags",
    "; ".join(f"tokens_{name} (tokens, {name})" for name in _TAGS),
    _recognise_tagged,
    _read_tagged,
    lambda name: ("tokens", name.removeprefix("tokens_")),
    lambda row: row.words,
    lambda row: row.tags,
)
