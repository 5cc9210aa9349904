"""The row formats that users have, recognised by their fields and turned into one shape: a conversation."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Format -> the fields that make a row one of it. Order matters: the first whose fields are all there wins.
REQUIRED_FIELDS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "query_response": ("query", "response"),
    "alpaca": ("instruction", "output"),
}

#: Fields each format reads beside the required ones.
OPTIONAL_FIELDS: Mapping[str, tuple[str, ...]] = {
    "messages": ("tools", "parallel_tool_calls"),
    "sharegpt": ("system", "tools"),
    "prompt_completion": ("system",),
    "query_response": ("history", "system"),
    "alpaca": ("input", "history", "system"),
}

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


class RowError(ValueError):
    """A row is refused: ``field`` is at fault, ``message`` says why and what to do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


def require_text(value: Any, field: str) -> str:
    """The value, if it is text that isn't blank. RowError otherwise."""
    if not isinstance(value, str):
        raise RowError(field, f"is {type(value).__name__}; must be text")
    if not value.strip():
        raise RowError(field, "is empty; every row needs text")
    return value


@dataclass(frozen=True)
class Conversation:
    """A row in the one shape that training knows.

    Attributes:
        messages: turns with ``role`` and ``content`` (and ``tool_calls``, ``tool_call_id``, ``name`` where there are any).
        trained: for each message whether it carries loss.
        tools: tool definitions in OpenAI's form; empty for none.
        weights: of each message's loss, where rows give any (SWIFT's ``loss_scale``); empty where all weigh 1.
    """

    messages: tuple[Mapping[str, Any], ...]
    trained: tuple[bool, ...]
    tools: tuple[Mapping[str, Any], ...] = field(default=())
    weights: tuple[float, ...] = ()


def recognise(fields: Collection[str]) -> str | None:
    """The format of a row that has these fields; None if it has none."""
    return next((name for name, required in REQUIRED_FIELDS.items() if all(f in fields for f in required)), None)


def describe_formats() -> str:
    """The formats and their fields, for people."""
    return "; ".join(f"{name} ({', '.join(required)})" for name, required in REQUIRED_FIELDS.items())


def to_messages(values: Mapping[str, Any], format_name: str) -> list[dict[str, Any]]:
    """The row's turns, not yet validated.

    Raises:
        RowError: a field that the format needs has the wrong type.
    """
    return _CONVERTERS[format_name](values)


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name, "")
    if not isinstance(value, str):
        raise RowError(name, f"is {type(value).__name__}; must be text")
    return value


def _required_text(values: Mapping[str, Any], name: str) -> str:
    value = _text(values, name)
    if not value.strip():
        raise RowError(name, "is empty; every row needs one")
    return value


def _system(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    text = _text(values, "system")
    return [{"role": "system", "content": text}] if text else []


def _history(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    history = values.get("history") or []
    if isinstance(history, str):  # CSV cells and Parquet columns may hold it as JSON text
        try:
            history = json.loads(history)
        except ValueError:
            raise RowError("history", "is not JSON; must be a list of [query, response] pairs") from None
    if not isinstance(history, list):
        raise RowError("history", "must be a list of [query, response] pairs")
    turns: list[dict[str, Any]] = []
    for index, pair in enumerate(history):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RowError(f"history[{index}]", "must be a pair of texts: [query, response]")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def _from_messages(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return _turns(values["messages"], "messages")


def _turns(turns: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(turns, list) or not turns:
        raise RowError(name, "must be a list with at least one turn")
    for index, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise RowError(f"{name}[{index}]", "must be an object with role and content")
    return [dict(turn) for turn in turns]


def _from_sharegpt(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = _system(values)
    for index, turn in enumerate(_turns(values["conversations"], "conversations")):
        role = turn.get("from", turn.get("role"))
        if role not in SHAREGPT_ROLES:
            known = ", ".join(SHAREGPT_ROLES)
            advice = f"must be one of: {known}; write tool calls as messages with tool_calls"
            raise RowError(f"conversations[{index}].from", f"is {role!r}; {advice}")
        if "value" not in turn and "content" not in turn:
            raise RowError(f"conversations[{index}].value", "is missing")
        messages.append({"role": SHAREGPT_ROLES[role], "content": turn.get("value", turn.get("content"))})
    return messages


def _from_prompt_completion(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    prompt, completion = values["prompt"], values["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        asked, answered = _turns(prompt, "prompt"), _turns(completion, "completion")
        # Only the completion is to be learned, whoever speaks in the prompt.
        quiet = [{**turn, "weight": 0} if turn.get("role") == "assistant" else turn for turn in asked]
        return _system(values) + quiet + answered
    if isinstance(prompt, list) or isinstance(completion, list):
        raise RowError("completion", "prompt and completion must be of one kind: both text or both lists of turns")
    turns = [("user", _required_text(values, "prompt")), ("assistant", _required_text(values, "completion"))]
    return _system(values) + [{"role": role, "content": content} for role, content in turns]


def _from_query_response(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    query, response = _required_text(values, "query"), _required_text(values, "response")
    return [
        *_system(values),
        *_history(values),
        {"role": "user", "content": query},
        {"role": "assistant", "content": response},
    ]


def _from_alpaca(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    instruction, extra, output = (
        _required_text(values, "instruction"),
        _text(values, "input"),
        _required_text(values, "output"),
    )
    query = f"{instruction}\n{extra}" if extra.strip() else instruction
    return [
        *_system(values),
        *_history(values),
        {"role": "user", "content": query},
        {"role": "assistant", "content": output},
    ]


_CONVERTERS: Mapping[str, Callable[[Mapping[str, Any]], list[dict[str, Any]]]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "prompt_completion": _from_prompt_completion,
    "query_response": _from_query_response,
    "alpaca": _from_alpaca,
}
