"""Rows of plain text, to go on training a model as it was trained at first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from martlet_inputs.rows.formats import RowError, require_text
from martlet_inputs.rows.kinds import RowKind

_FORMATS: Mapping[str, tuple[str, ...]] = {"text": ("text",), "content": ("content",), "messages": ("messages",)}


def _recognise(values: Mapping[str, Any]) -> str | None:
    return next((name for name, fields in _FORMATS.items() if all(field in values for field in fields)), None)


def _read(values: Mapping[str, Any], name: str) -> str:
    text = values[name]
    if name == "messages":  # SWIFT's form: one turn of the assistant
        if not isinstance(text, list) or len(text) != 1 or not isinstance(text[0], Mapping):
            raise RowError("messages", "must be a list with one turn, whose content is the text; or write it as text")
        text = text[0].get("content")
    return require_text(text, name)


TEXTS: RowKind[str] = RowKind(
    "texts",
    "text (text); content (content); messages (one turn of the assistant)",
    _recognise,
    _read,
    lambda name: _FORMATS[name],
    lambda text: (text,),
)
