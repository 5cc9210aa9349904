"""Rows that say which of two answers is better, and rows that say whether one answer is good."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from martlet_inputs.rows.formats import Conversation, RowError, recognise, to_messages
from martlet_inputs.rows.kinds import RowKind, conversation_texts
from martlet_inputs.rows.turns import check_conversation


@dataclass(frozen=True)
class Preference:
    """Two conversations that differ in their ends: only what comes behind the common beginning is trained.

    Attributes:
        chosen: with the better answer.
        rejected: with the worse one.
    """

    chosen: Conversation
    rejected: Conversation


@dataclass(frozen=True)
class Feedback:
    """A conversation, and whether its last answer is good."""

    conversation: Conversation
    good: bool


Turns = list[dict[str, Any]]

#: Format of pairs -> the fields that make a row one of it, and fields it reads beside them.
_PAIRS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "openai_preference": (("input", "preferred_output", "non_preferred_output"), ()),
    "rejected_response": (("messages", "rejected_response"), ("tools",)),
    "rejected_messages": (("messages", "rejected_messages"), ("tools",)),
    "query_rejected_response": (("query", "response", "rejected_response"), ("history", "system")),
    "sharegpt_chosen_rejected": (("conversations", "chosen", "rejected"), ("system", "tools")),
    "prompt_chosen_rejected": (("prompt", "chosen", "rejected"), ("system",)),
    "chosen_rejected": (("chosen", "rejected"), ()),
}


def _recognise_pair(values: Mapping[str, Any]) -> str | None:
    return next((name for name, (required, _) in _PAIRS.items() if all(values.get(f) for f in required)), None)


def _read_pair(values: Mapping[str, Any], name: str) -> Preference:
    chosen, rejected = _READERS[name](values)
    common = _common(chosen, rejected)
    if common == len(chosen) or common == len(rejected):
        raise RowError("", "the two answers are the same, so nothing tells them apart; remove the row")
    tools = (values["input"] if name == "openai_preference" else values).get("tools")
    pair = [
        check_conversation(_quiet(turns, common), field, {"tools": tools})
        for field, turns in zip(_FIELDS[name], (chosen, rejected), strict=True)
    ]
    return Preference(*pair)


def _common(chosen: Turns, rejected: Turns) -> int:
    """How many turns both begin with."""
    for index, (one, other) in enumerate(zip(chosen, rejected, strict=False)):
        if one != other:
            return index
    return min(len(chosen), len(rejected))


def _quiet(turns: Turns, common: int) -> Turns:
    """Turns of which those in the common beginning carry no loss."""
    return [
        {**turn, "weight": 0} if index < common and turn.get("role") == "assistant" else turn
        for index, turn in enumerate(turns)
    ]


def _openai(values: Mapping[str, Any]) -> tuple[Turns, Turns]:
    asked = values["input"]
    if not isinstance(asked, Mapping) or not isinstance(asked.get("messages"), list):
        raise RowError("input", "must be an object with messages")
    prompt = _turns(asked["messages"], "input.messages")
    return prompt + _turns(values["preferred_output"], "preferred_output"), prompt + _turns(
        values["non_preferred_output"], "non_preferred_output"
    )


def _rejected_response(values: Mapping[str, Any]) -> tuple[Turns, Turns]:
    chosen = _turns(values["messages"], "messages")
    if chosen[-1].get("role") != "assistant":
        raise RowError(f"messages[{len(chosen) - 1}].role", "the last turn must be the assistant's, which was chosen")
    return chosen, [*chosen[:-1], {"role": "assistant", "content": _text(values, "rejected_response")}]


def _rejected_messages(values: Mapping[str, Any]) -> tuple[Turns, Turns]:
    return _turns(values["messages"], "messages"), _turns(values["rejected_messages"], "rejected_messages")


def _query(values: Mapping[str, Any]) -> tuple[Turns, Turns]:
    chosen = to_messages(values, "query_response")
    return chosen, [*chosen[:-1], {"role": "assistant", "content": _text(values, "rejected_response")}]


def _prompt(values: Mapping[str, Any]) -> tuple[Turns, Turns]:
    def whole(name: str) -> Turns:
        return to_messages(
            {"prompt": values["prompt"], "completion": values[name], "system": values.get("system", "")},
            "prompt_completion",
        )

    return whole("chosen"), whole("rejected")


def _sharegpt(values: Mapping[str, Any]) -> tuple[Turns, Turns]:
    def whole(name: str) -> Turns:
        if not isinstance(values[name], Mapping):
            raise RowError(name, "must be a turn, with from and value")
        return to_messages({**values, "conversations": [*values["conversations"], values[name]]}, "sharegpt")

    if not isinstance(values["conversations"], list):
        raise RowError("conversations", "must be a list with at least one turn")
    return whole("chosen"), whole("rejected")


def _implicit(values: Mapping[str, Any]) -> tuple[Turns, Turns]:
    return _turns(values["chosen"], "chosen"), _turns(values["rejected"], "rejected")


def _turns(turns: Any, field: str) -> Turns:
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise RowError(field, "must be a list of turns, each with role and content")
    return [dict(turn) for turn in turns]


def _text(values: Mapping[str, Any], field: str) -> str:
    if not isinstance(values[field], str):
        raise RowError(field, f"is {type(values[field]).__name__}; must be text")
    return values[field]


_READERS: Mapping[str, Callable[[Mapping[str, Any]], tuple[Turns, Turns]]] = {
    "openai_preference": _openai,
    "rejected_response": _rejected_response,
    "rejected_messages": _rejected_messages,
    "query_rejected_response": _query,
    "sharegpt_chosen_rejected": _sharegpt,
    "prompt_chosen_rejected": _prompt,
    "chosen_rejected": _implicit,
}
#: Where the turns of the two conversations come from, for messages.
_FIELDS: Mapping[str, tuple[str, str]] = {
    "openai_preference": ("preferred_output", "non_preferred_output"),
    "rejected_response": ("messages", "rejected_response"),
    "rejected_messages": ("messages", "rejected_messages"),
    "query_rejected_response": ("response", "rejected_response"),
    "sharegpt_chosen_rejected": ("conversations", "conversations"),
    "prompt_chosen_rejected": ("chosen", "rejected"),
    "chosen_rejected": ("chosen", "rejected"),
}


def _pair_texts(pair: Preference) -> Iterable[str]:
    """Those of the longer conversation: each is a sequence of its own."""
    return max(
        (list(conversation_texts(part)) for part in (pair.chosen, pair.rejected)), key=lambda t: sum(map(len, t))
    )


def _describe(formats: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> str:
    return "; ".join(f"{name} ({', '.join(required)})" for name, (required, _) in formats.items())


PREFERENCES: RowKind[Preference] = RowKind(
    "preferences",
    _describe(_PAIRS),
    _recognise_pair,
    _read_pair,
    lambda name: [*_PAIRS[name][0], *_PAIRS[name][1]],
    _pair_texts,
)

#: Field of a verdict, beside a conversation in one of its formats.
_LABEL = "label"


def _recognise_feedback(values: Mapping[str, Any]) -> str | None:
    name = recognise(values)
    return f"{name}_label" if name and _LABEL in values else None


def _read_feedback(values: Mapping[str, Any], name: str) -> Feedback:
    label = values[_LABEL]
    if not isinstance(label, bool):
        raise RowError(_LABEL, f"is {label!r}; must be true (a good answer) or false (a bad one)")
    turns = to_messages(values, name.removesuffix("_label"))
    last = len(turns) - 1
    return Feedback(check_conversation(_quiet(turns, last), "messages", values), label)


FEEDBACK: RowKind[Feedback] = RowKind(
    "feedback",
    "messages_label (messages, label); prompt_completion_label (prompt, completion, label); query_response_label (query, response, label)",
    _recognise_feedback,
    _read_feedback,
    lambda name: (_LABEL, "messages", "prompt", "completion", "query", "response", "history", "system", "tools"),
    lambda row: conversation_texts(row.conversation),
)
