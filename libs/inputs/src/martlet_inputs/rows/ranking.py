"""Rows of texts that belong together, or don't: pairs for embeddings, queries with documents for rerankers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from martlet_inputs.rows.formats import RowError, require_text
from martlet_inputs.rows.kinds import RowKind


@dataclass(frozen=True)
class Ranking:
    """A text, and others by how they belong to it.

    Attributes:
        anchor: the text, or the query.
        positives: texts that belong to it, or are to be compared with it.
        negatives: texts that don't.
        score: how much the positive one belongs; None where the row says nothing of it.
    """

    anchor: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    score: float | None = None


@dataclass(frozen=True)
class _Fields:
    """Where a format has what: each name stands for a field."""

    anchor: str
    positives: str
    negatives: str = ""


#: Format -> its fields. Those of ``messages`` are SWIFT's, the others are columns as sentence-transformers takes them.
_FORMATS: Mapping[str, _Fields] = {
    "messages_ranking": _Fields("messages", "positive_messages", "negative_messages"),
    "anchor_positive": _Fields("anchor", "positive", "negative"),
    "query_positive": _Fields("query", "positive", "negative"),
    "sentence_pair": _Fields("sentence1", "sentence2"),
}
#: Names of the score.
_SCORES = ("label", "score")


def _recognise(values: Mapping[str, Any]) -> str | None:
    return next(
        (name for name, fields in _FORMATS.items() if fields.anchor in values and values.get(fields.positives)), None
    )


def read_ranking(values: Mapping[str, Any]) -> Ranking:
    """A row of any of the formats, whatever it is for. RowError for one of none, or at fault."""
    name = _recognise(values)
    if name is None:
        raise RowError("", f"has no known format (fields: {', '.join(values)}); use one of: {_described('')}")
    return _convert(values, name)


def _convert(values: Mapping[str, Any], name: str) -> Ranking:
    fields = _FORMATS[name]
    anchor = values[fields.anchor]
    return Ranking(
        _turn(anchor, fields.anchor) if name == "messages_ranking" else require_text(anchor, fields.anchor),
        _several(values[fields.positives], fields.positives),
        _several(values.get(fields.negatives) or [], fields.negatives),
        _score(values),
    )


def _read(check: Callable[[Ranking, _Fields], None], values: Mapping[str, Any], name: str) -> Ranking:
    fields, row = _FORMATS[name], _convert(values, name)
    if row.score is not None and len(row.positives) > 1:
        raise RowError(fields.positives, f"has {len(row.positives)} texts for one score; write a row for each")
    check(row, fields)
    return row


def _several(value: Any, field: str) -> tuple[str, ...]:
    """One text, a list of texts, or SWIFT's list of conversations of one turn."""
    if isinstance(value, str):
        return (require_text(value, field),)
    if not isinstance(value, list):
        raise RowError(field, "must be text, a list of texts, or a list of lists of turns")
    return tuple(
        _turn(one, f"{field}[{index}]") if isinstance(one, list) else require_text(one, f"{field}[{index}]")
        for index, one in enumerate(value)
    )


def _turn(turns: Any, field: str) -> str:
    """The text of a conversation of one turn: it is embedded as it is, with no chat template around it."""
    if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], Mapping):
        raise RowError(field, "must be a list with one turn, whose content is the text; put instructions into the text")
    return require_text(turns[0].get("content"), f"{field}[0].content")


def _score(values: Mapping[str, Any]) -> float | None:
    name = next((name for name in _SCORES if values.get(name) is not None), None)
    if name is None:
        return None
    score = values[name]
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise RowError(name, f"is {score!r}; must be a number")
    return float(score)


def _check_pairs(row: Ranking, fields: _Fields) -> None:
    if row.score is not None and row.score != 1:
        raise RowError(
            "label",
            f"is {row.score:g}, but loss infonce takes pairs that belong together, without a score; leave such rows out, or choose loss"
            " cosine_similarity",
        )


def _check_scored(row: Ranking, fields: _Fields) -> None:
    if row.score is None or not -1 <= row.score <= 1:
        found = "is missing" if row.score is None else f"is {row.score:g}"
        raise RowError("label", f"{found}; loss cosine_similarity takes a similarity from -1 to 1 in each row")
    _refuse_negatives(row, fields)


def _check_verdict(row: Ranking, fields: _Fields) -> None:
    if row.score not in (0, 1):
        found = "is missing" if row.score is None else f"is {row.score:g}"
        raise RowError("label", f"{found}; loss contrastive takes 1 (they belong together) or 0 in each row")
    _refuse_negatives(row, fields)


def _refuse_negatives(row: Ranking, fields: _Fields) -> None:
    if row.negatives:
        raise RowError(fields.negatives, "is for loss infonce; write a row with a label for each text, or choose it")


def _check_query(row: Ranking, fields: _Fields) -> None:
    if not row.negatives:
        where = fields.negatives or "negative"
        raise RowError(where, "is missing; a reranker needs documents of both kinds with each query")
    if row.score is not None:
        raise RowError("label", "has no meaning here: documents are positive or negative; leave it out")


def _texts(row: Ranking) -> Iterable[str]:
    """The longest: each is a sequence of its own, or one beside the anchor."""
    return (row.anchor, max((*row.positives, *row.negatives), key=len))


def _known(name: str) -> tuple[str, ...]:
    fields = _FORMATS[name]
    return (fields.anchor, fields.positives, *filter(None, (fields.negatives,)), *_SCORES)


def _described(beside: str) -> str:
    return "; ".join(f"{name} ({fields.anchor}, {fields.positives}{beside})" for name, fields in _FORMATS.items())


def _kind(check: Callable[[Ranking, _Fields], None], beside: str) -> RowKind[Ranking]:
    return RowKind("ranking", _described(beside), _recognise, partial(_read, check), _known, _texts)


#: Kind of rows by the loss of an embedding model.
EMBEDDING_PAIRS: Mapping[str, RowKind[Ranking]] = {
    "infonce": _kind(_check_pairs, ""),
    "cosine_similarity": _kind(_check_scored, ", label"),
    "contrastive": _kind(_check_verdict, ", label"),
}
RERANKING: RowKind[Ranking] = _kind(_check_query, ", and documents that don't fit")
