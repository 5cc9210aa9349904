"""Rows that distillation learns from: conversations, whose last answer may be left for a model to give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from martlet_inputs.rows.formats import OPTIONAL_FIELDS, REQUIRED_FIELDS, Conversation, RowError
from martlet_inputs.rows.kinds import CONVERSATIONS, RowKind, conversation_texts
from martlet_inputs.rows.prompts import PROMPTS
from martlet_inputs.rows.turns import check_prompt


@dataclass(frozen=True)
class Exchange:
    """A question, and perhaps its answer.

    Attributes:
        question: turns up to the last answer; none is trained.
        conversation: the turns with the answer; None where the row has none.
    """

    question: Conversation
    conversation: Conversation | None


#: Of formats that a row with an answer and one without have in common, what the latter is called.
_ASKS = "_question"


def _recognise(values: Mapping[str, Any]) -> str | None:
    turns = values.get("messages")
    answered = not (isinstance(turns, list) and turns and isinstance(turns[-1], Mapping)) or (
        turns[-1].get("role") == "assistant"
    )
    if answered and (name := CONVERSATIONS.recognise(values)):
        return name
    asks = PROMPTS.recognise(values)
    return asks and asks + _ASKS


def _read(values: Mapping[str, Any], name: str) -> Exchange:
    if name.endswith(_ASKS):
        return Exchange(PROMPTS.convert(values, name.removesuffix(_ASKS)).conversation, None)
    conversation = CONVERSATIONS.convert(values, name)
    if conversation.weights:
        raise RowError("messages", "has turns with a loss_scale, which distillation doesn't weigh by; leave it out")
    turns = [dict(message) for message in conversation.messages[:-1]]
    if not turns:
        raise RowError("messages", "begins with its last answer; a model must be asked something first")
    return Exchange(check_prompt(turns, "messages", {"tools": list(conversation.tools)}), conversation)


def _known_fields(name: str) -> Iterable[str]:
    if name.endswith(_ASKS):
        return (name.removesuffix(_ASKS), "system", "tools")
    return (*REQUIRED_FIELDS[name], *OPTIONAL_FIELDS[name])


EXCHANGES: RowKind[Exchange] = RowKind(
    "conversations and questions",
    f"{CONVERSATIONS.formats}; or questions alone: messages (the last of the user), prompt, query",
    _recognise,
    _read,
    _known_fields,
    lambda row: conversation_texts(row.conversation or row.question),
)
