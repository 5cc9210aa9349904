"""Validates a data set row by row without a tokenizer: at submission by the service, and again by the recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core.errors import FieldViolation, InvalidArgument

from martlet_inputs.rows.formats import (
    FOREIGN_FIELDS,
    Conversation,
    RowError,
    describe_formats,
    ignored_fields,
    recognise,
    to_messages,
)
from martlet_inputs.rows.read import Row, read_rows
from martlet_inputs.rows.report import DataReport, RowIssue

ROLES = ("system", "developer", "user", "assistant", "tool")
_TURN_FIELDS = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "weight", "loss", "refusal", "reasoning_content"}
)
#: Violations an error carries; its message counts the rest.
_MAX_VIOLATIONS = 20


@dataclass(frozen=True)
class ValidRow:
    """A row that passed."""

    line: int
    conversation: Conversation
    file: str = ""


def valid_rows(path: Path, report: DataReport, max_json_bytes: int | None = None) -> Iterator[ValidRow]:
    """The rows that pass, in order; those that don't are counted in ``report``, and so is the format.

    The caller counts a row as used (``report.add_used``): tokenizing may still refuse it.

    Raises:
        InvalidArgument: a file is broken as a whole.
    """
    for row in read_rows(path, max_json_bytes):
        try:
            conversation = _check_row(row, report)
        except RowError as error:
            report.add_refused(RowIssue(row.line, error.field, error.message, file=row.file))
            continue
        if conversation is not None:
            yield ValidRow(row.line, conversation, row.file)


def validate_dataset(path: Path, max_json_bytes: int | None = None) -> DataReport:
    """Validate a file, or a directory of files, without a tokenizer; ``max_json_bytes`` as in ``read_rows``.

    Raises:
        InvalidArgument: a file is broken as a whole, or there are no rows.
    """
    report = DataReport()
    for row in valid_rows(path, report, max_json_bytes):
        report.add_used()
        report.longest_row_bytes = max(report.longest_row_bytes, _text_bytes(row.conversation))
    return report


def check_dataset(path: Path, on_bad_rows: str, field: str = "spec.training_dataset") -> DataReport:
    """Validate a data set and refuse it if it can't be trained on; see ``require_usable``."""
    report = validate_dataset(path)
    require_usable(report, on_bad_rows, field)
    return report


def require_usable(report: DataReport, on_bad_rows: str, field: str = "spec.training_dataset") -> None:
    """Refuse a data set by its report.

    Args:
        report: counts over the whole data set.
        on_bad_rows: ``fail`` or ``skip``.
        field: the request's field that named the data set.

    Raises:
        InvalidArgument: reason EMPTY_DATASET if no row is left, BAD_ROWS if one was refused and ``on_bad_rows`` is ``fail``.
    """
    refused = [issue for issue in report.issues if issue.refused]
    violations = [FieldViolation(field, issue.describe()) for issue in refused[:_MAX_VIOLATIONS]]
    first = f" First: {refused[0].describe()}." if refused else ""
    if report.rows_read == 0:
        raise InvalidArgument.field(field, "has no rows; write one JSON object a line", reason="EMPTY_DATASET")
    if report.rows_used == 0:
        message = f"{field}: none of its {report.rows_read} rows can be used.{first} Formats: {describe_formats()}"
        raise InvalidArgument(message, reason="BAD_ROWS", violations=violations)
    if report.rows_refused and on_bad_rows == "fail":
        counts = f"{report.rows_refused} of {report.rows_read} rows were refused."
        message = f"{field}: {counts}{first} Mend these rows, or set data.on_bad_rows to skip to leave them out"
        raise InvalidArgument(message, reason="BAD_ROWS", violations=violations)


def _check_row(row: Row, report: DataReport) -> Conversation | None:
    if row.issue is not None:
        report.add_refused(row.issue)
        return None
    values = _without_empty_alias(row.values or {})
    for name, purpose in FOREIGN_FIELDS.items():
        if values.get(name):
            raise RowError(
                name, f"belongs to {purpose}, which recipe sft doesn't train; remove the field or choose another recipe"
            )
    name = recognise(values)
    if name is None:
        found = ", ".join(map(str, values)) or "none"
        raise RowError("", f"has no known format (fields: {found}); use one of: {describe_formats()}")
    if report.format and name != report.format:
        raise RowError(
            "", f"is of format {name}, but the rows before are {report.format}; keep one format in a data set"
        )
    report.format = report.format or name
    conversation = check_conversation(
        to_messages(values, name), "messages" if name != "sharegpt" else "conversations", values
    )
    for unused in ignored_fields(values, name):
        if unused not in report.ignored_fields:
            report.ignored_fields.append(unused)
    return conversation


def _text_bytes(conversation: Conversation) -> int:
    values = [value for message in conversation.messages for value in message.values()]
    return sum(len(str(value).encode("utf-8", "replace")) for value in (*values, *conversation.tools))


def _without_empty_alias(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """ShareGPT's list is called ``conversations``; ``conversation`` is met too."""
    if "conversation" in values and "conversations" not in values and isinstance(values["conversation"], list):
        return {("conversations" if key == "conversation" else key): value for key, value in values.items()}
    return values


def check_conversation(messages: list[dict[str, Any]], field: str, values: Mapping[str, Any]) -> Conversation:
    """Check turns and their order.

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
    return Conversation(tuple(checked), trained, tools)


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
    return turn.get("role") == "assistant" and weight != 0 and loss is not False
