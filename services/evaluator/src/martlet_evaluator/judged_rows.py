"""Rows for models that don't generate: what a text is, which texts belong together. The formats are those that such models are
trained on: SWIFT's, and the columns of sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from martlet_inputs.rows import ranking
from martlet_inputs.rows.formats import RowError, require_text
from martlet_inputs.rows.preferences import PREFERENCES, Preference
from martlet_inputs.rows.ranking import Ranking
from martlet_inputs.rows.report import DataReport

#: A text, or the turns of a conversation.
Judged = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Labelled:
    """A text and its class, by name or by number."""

    text: Judged
    label: str | int


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
    return Labelled(require_text(text, name), label)


def read_ranking(values: Mapping[str, Any]) -> Ranking:
    """A row of a text and those that belong to it, each once. RowError otherwise."""
    row = ranking.read_ranking(values)
    return replace(row, positives=tuple(dict.fromkeys(row.positives)), negatives=tuple(dict.fromkeys(row.negatives)))


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
