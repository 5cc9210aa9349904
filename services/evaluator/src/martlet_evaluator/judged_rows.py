"""Rows for models that don't generate: what a text is, which texts belong together. The formats are those that such models are
trained on: SWIFT's, and the columns of sentence-transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from martlet_inputs.rows.formats import RowError
from martlet_inputs.rows.preferences import PREFERENCES, Preference
from martlet_inputs.rows.report import DataReport

#: A text, or the turns of a conversation.
Judged = str | Sequence[Mapping[str, Any]]

#: Anchor, positives and negatives by the names of their fields.
_RANKINGS = (
    ("messages", "positive_messages", "negative_messages"),
    ("query", "positive", "negative"),
    ("anchor", "positive", "negative"),
    ("sentence1", "sentence2", ""),
)
_SCORES = ("score", "label")


@dataclass(frozen=True)
class Labelled:
    """A text and its class, by name or by number."""

    text: Judged
    label: str | int


@dataclass(frozen=True)
class Ranking:
    """A text, those that belong to it, and those that don't.

    Attributes:
        score: how much the one positive belongs; None where the row says nothing of it.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    score: float | None


def read_labelled(values: Mapping[str, Any]) -> Labelled:
    """A row of ``text``, ``query`` or ``messages``, and a ``label``. RowError otherwise."""
    label = values.get("label")
    if not isinstance(label, (str, int)) or isinstance(label, bool) or label == "":
        raise RowError("label", f"is {label!r}; must be the class's name, or its number")
    name = next((name for name in ("text", "query", "messages") if name in values), None)
    if name is None:
        raise RowError(
            "text", f"is missing, and so are query and messages (fields: {', '.join(values)}); write one of them"
        )
    text = values[name]
    if name == "messages":
        turns = isinstance(text, list) and text and all(isinstance(turn, Mapping) and "role" in turn for turn in text)
        if not turns:
            raise RowError("messages", "must be a list of turns, each with role and content")
        return Labelled(text, label)
    return Labelled(_text(text, name), label)


def read_ranking(values: Mapping[str, Any]) -> Ranking:
    """A row of a text and those that belong to it. RowError otherwise."""
    for anchor, positives, negatives in _RANKINGS:
        if anchor in values and values.get(positives):
            return Ranking(
                _turn(values[anchor], anchor),
                _several(values[positives], positives),
                _several(values.get(negatives) or [], negatives),
                _score(values),
            )
    formats = "; ".join(", ".join(filter(None, names)) for names in _RANKINGS)
    raise RowError("", f"has no known format (fields: {', '.join(values)}); use one of: {formats}")


def read_scored(values: Mapping[str, Any]) -> Ranking:
    """The same with a score, and nothing to choose from."""
    row = read_ranking(values)
    if row.score is None:
        raise RowError("score", "is missing, as label too; similarity is measured beside a number in each row")
    if len(row.positives) != 1 or row.negatives:
        raise RowError("score", "is of a pair; write one text beside the first, and none that doesn't belong")
    return row


def read_documents(values: Mapping[str, Any]) -> Ranking:
    """The same with documents of both kinds."""
    row = read_ranking(values)
    if not row.negatives:
        raise RowError("negative", "is missing; a reranker is measured on documents that fit and documents that don't")
    return row


def read_preference(values: Mapping[str, Any]) -> Preference:
    """A conversation that was chosen, and one that was rejected. RowError otherwise."""
    return PREFERENCES.read(values, DataReport())


def _several(value: Any, field: str) -> tuple[str, ...]:
    """A text, texts, or SWIFT's conversations of one turn."""
    if isinstance(value, list):
        return tuple(dict.fromkeys(_turn(one, f"{field}[{index}]") for index, one in enumerate(value)))
    return (_text(value, field),)


def _turn(value: Any, field: str) -> str:
    if not isinstance(value, list):
        return _text(value, field)
    if len(value) != 1 or not isinstance(value[0], Mapping):
        raise RowError(field, "must be a text, or a list with one turn")
    return _text(value[0].get("content"), f"{field}[0].content")


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError(field, f"is {value!r:.80}; must be a text that isn't empty")
    return value


def _score(values: Mapping[str, Any]) -> float | None:
    name = next((name for name in _SCORES if values.get(name) is not None), None)
    if name is None:
        return None
    score = values[name]
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise RowError(name, f"is {score!r}; must be a number")
    return float(score)
