"""Turns of a conversation and their order, checked one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from martlet_inputs.rows.formats import Conversation, RowError

ROLES = ("system", "developer", "user", "assistant", "tool")
#: Of a turn's loss.
_LARGEST_WEIGHT = 1000.0
_TURN_FIELDS = frozenset(
    {
        *("role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning_content"),
        *("weight", "loss", "loss_scale"),
    }
)


def check_conversation(
    messages: list[dict[str, Any]], field: str, values: Mapping[str, Any], *, weighted: bool = False
) -> Conversation:
    """Check turns and their order.

    Args:
        messages: the turns.
        field: where they stand in the row.
        values: the row.
        weighted: whether the loss of a turn may have a weight of its own (``loss_scale``).

    Raises:
        RowError: naming the first thing at fault.
    """
    tools = _check_tools(values.get("tools"))
    checked = [_check_turn(turn, f"{field}[{index}]") for index, turn in enumerate(messages)]
    _check_order(checked, field)
    trained = tuple(_is_trained(turn, f"{field}[{index}]") for index, turn in enumerate(messages))
    if not any(trained):
        raise RowError(
            field, "every assistant turn has weight 0, so there is nothing to learn; give one of them weight 1"
        )
    weights = tuple(_weight(turn, f"{field}[{index}]", weighted) for index, turn in enumerate(messages))
    return Conversation(tuple(checked), trained, tools, weights if any(weight != 1 for weight in weights) else ())


def check_prompt(messages: list[dict[str, Any]], field: str, values: Mapping[str, Any]) -> Conversation:
    """Check turns that end with a question.

    Raises:
        RowError: naming the first thing at fault.
    """
    conversation = check_turns(messages, field, values)
    last = len(conversation.messages) - 1
    role = conversation.messages[last]["role"]
    if role not in ("user", "tool"):
        raise RowError(
            f"{field}[{last}].role",
            f"is {role!r}; the model answers the last turn, which must be the user's: put a known answer into `solution`",
        )
    return conversation


def check_turns(messages: list[dict[str, Any]], field: str, values: Mapping[str, Any]) -> Conversation:
    """Check turns, none of which is trained, whoever has the last word.

    Raises:
        RowError: naming the first thing at fault.
    """
    tools = _check_tools(values.get("tools"))
    checked = [_check_turn(turn, f"{field}[{index}]") for index, turn in enumerate(messages)]
    if any(message["role"] == "system" for message in checked[1:]):
        raise RowError(field, "has a system turn that isn't the first; only the first turn may be")
    return Conversation(tuple(checked), (False,) * len(checked), tools)


def _check_turn(turn: Mapping[str, Any], field: str) -> dict[str, Any]:
    role = turn.get("role")
    if role not in ROLES:
        raise RowError(
            f"{field}.role", f"is {role!r}; must be one of: {', '.join(ROLES)}" if "role" in turn else "is missing"
        )
    unknown = [name for name in turn if name not in _TURN_FIELDS]
    if unknown:
        raise RowError(f"{field}.{unknown[0]}", f"is not known in a turn; known: {', '.join(sorted(_TURN_FIELDS))}")
    calls = _check_tool_calls(turn, field)
    content = _check_content(turn, field, may_be_empty=bool(calls) or role in ("system", "developer", "tool"))
    checked: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": content}
    if calls:
        checked["tool_calls"] = calls
    for name in ("name", "tool_call_id", "reasoning_content"):
        if name in turn and turn[name] is not None:
            if not isinstance(turn[name], str):
                raise RowError(f"{field}.{name}", "must be text")
            checked[name] = turn[name]
    return checked


def _check_content(turn: Mapping[str, Any], field: str, may_be_empty: bool) -> str:
    content = turn.get("content")
    if content is None:
        content = turn.get("refusal") or ""
    if isinstance(content, list):
        content = _join_parts(content, field)
    if not isinstance(content, str):
        raise RowError(f"{field}.content", f"is {type(content).__name__}; must be text")
    if not content.strip() and not may_be_empty:
        raise RowError(f"{field}.content", "is empty; every turn needs text")
    if not content.isascii() and any("\ud800" <= character <= "\udfff" for character in content):
        raise RowError(f"{field}.content", "holds half of a surrogate pair, which no encoding has; write the character")
    return content


def _join_parts(parts: list[Any], field: str) -> str:
    texts = []
    for index, part in enumerate(parts):
        place = f"{field}.content[{index}]"
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RowError(place, f"is of type {kind!r}; only text parts can be trained on here")
        if not isinstance(part.get("text"), str):
            raise RowError(f"{place}.text", "must be text")
        texts.append(part["text"])
    return "".join(texts)


def _check_tool_calls(turn: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    calls = turn.get("tool_calls")
    if not calls:
        return []
    if turn.get("role") != "assistant":
        raise RowError(f"{field}.tool_calls", "belongs to assistant turns only")
    if not isinstance(calls, list):
        raise RowError(f"{field}.tool_calls", "must be a list of {type, function: {name, arguments}}")
    checked = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        place = f"{field}.tool_calls[{index}].function"
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RowError(place, "must be an object with name and arguments")
        checked.append({**call, "function": {**function, "arguments": _arguments(function.get("arguments"), place)}})
    return checked


def _arguments(arguments: Any, field: str) -> dict[str, Any]:
    """Chat templates print arguments as JSON, so they get the object, not OpenAI's JSON text."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise RowError(f"{field}.arguments", "is not valid JSON; must be a JSON object") from None
    if not isinstance(arguments, dict):
        raise RowError(f"{field}.arguments", "must be a JSON object, as text or as it is")
    return arguments


def _check_tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    if isinstance(tools, str) and tools.strip():  # SWIFT's users write them as JSON text
        try:
            tools = json.loads(tools)
        except ValueError:
            raise RowError("tools", "is not valid JSON; must be a list of tool definitions") from None
    if not tools:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("tools", "must be a list of tool definitions")
    return tuple(tools)


def _check_order(messages: list[dict[str, Any]], field: str) -> None:
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise RowError(field, "has no assistant turn, so there is nothing to learn; add one")
    if roles[-1] != "assistant":
        raise RowError(f"{field}[{len(roles) - 1}].role", f"is {roles[-1]!r}; the last turn must be the assistant's")
    for index, role in enumerate(roles):
        before = messages[index - 1] if index else None
        if role == "system" and index:
            raise RowError(f"{field}[{index}].role", "is 'system'; only the first turn may be")
        if role == "tool" and not (before and (before["role"] == "tool" or before.get("tool_calls"))):
            raise RowError(f"{field}[{index}].role", "is 'tool'; must follow an assistant turn with tool_calls")


def _is_trained(turn: Mapping[str, Any], field: str) -> bool:
    """Whether a turn carries loss: assistant turns do, unless OpenAI's ``weight`` is 0 or SWIFT's ``loss`` is false."""
    weight, loss = turn.get("weight"), turn.get("loss")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise RowError(f"{field}.weight", f"is {weight!r}; must be 0 or 1")
    if loss is not None and not isinstance(loss, bool):
        raise RowError(f"{field}.loss", f"is {loss!r}; must be true or false")
    return turn.get("role") == "assistant" and weight != 0 and loss is not False and turn.get("loss_scale") != 0


def _weight(turn: Mapping[str, Any], field: str, weighted: bool) -> float:
    """Weight of a turn's loss by SWIFT's ``loss_scale``; 1 for most."""
    scale = turn.get("loss_scale")
    if scale is None:
        return 1.0
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 <= scale <= _LARGEST_WEIGHT:
        raise RowError(f"{field}.loss_scale", f"is {scale!r}; must be a number from 0 to {_LARGEST_WEIGHT:g}")
    if turn.get("role") != "assistant":
        raise RowError(f"{field}.loss_scale", "belongs to assistant turns only; leave it out")
    if not weighted and scale not in (0, 1):
        raise RowError(
            f"{field}.loss_scale", "is for recipes that learn each token (sft); leave it out, or set it to 0 or 1"
        )
    return float(scale)
