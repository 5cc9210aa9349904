"""Rows that ask and leave the answer to the model: a prompt, and whatever a reward needs to judge what it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from martlet_inputs.rows.formats import Conversation, RowError
from martlet_inputs.rows.kinds import RowKind, conversation_texts
from martlet_inputs.rows.turns import check_prompt


@dataclass(frozen=True)
class Prompt:
    """A question.

    Attributes:
        conversation: turns up to the one that is to be answered; none is trained.
        columns: the row's other fields, such as ``solution``, for rewards.
    """

    conversation: Conversation
    columns: Mapping[str, Any]


_FORMATS: Mapping[str, tuple[str, ...]] = {"messages": ("messages",), "prompt": ("prompt",), "query": ("query",)}
_READ = frozenset({"messages", "prompt", "query", "system", "tools"})


def _recognise(values: Mapping[str, Any]) -> str | None:
    return next((name for name, fields in _FORMATS.items() if all(values.get(f) for f in fields)), None)


def _read(values: Mapping[str, Any], name: str) -> Prompt:
    asked = values[name]
    if isinstance(asked, str):
        turns = [{"role": "user", "content": asked}]
    elif isinstance(asked, list) and asked and all(isinstance(turn, Mapping) for turn in asked):
        turns = [dict(turn) for turn in asked]
    else:
        raise RowError(name, "must be text, or a list of turns, each with role and content")
    if system := values.get("system"):
        if not isinstance(system, str):
            raise RowError("system", f"is {type(system).__name__}; must be text")
        turns = [{"role": "system", "content": system}, *turns]
    columns = {field: value for field, value in values.items() if field not in _READ}
    return Prompt(check_prompt(turns, name, values), columns)


def _texts(row: Prompt) -> Iterable[str]:
    return conversation_texts(row.conversation)


PROMPTS: RowKind[Prompt] = RowKind(
    "prompts",
    "messages (messages, the last of the user); prompt (prompt); query (query); solution and other fields are for rewards",
    _recognise,
    _read,
    None,
    _texts,
)
