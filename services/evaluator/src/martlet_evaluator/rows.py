"""The rows of a data set as evaluations need them: the conversation up to the answer, the expected answer, the row itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from martlet_core.errors import FieldViolation, InvalidArgument
from martlet_inputs.rows.formats import RowError, describe_formats, recognise, to_messages
from martlet_inputs.rows.read import Row as FileRow
from martlet_inputs.rows.read import read_rows
from martlet_inputs.rows.report import RowIssue
from martlet_inputs.rows.turns import check_conversation

from martlet_evaluator.config import close_to

FIELD = "spec.dataset"
_MAX_VIOLATIONS = 20


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        index: place in the data set, counted from 0.
        line: line in its file.
        messages: the conversation up to the answer; empty where the row is none.
        expected: the last assistant turn; None where the row is no conversation.
        category: value of the category field; empty without one.
        values: the row as it stands in its file.
        tools: tool definitions.
    """

    index: int
    line: int
    messages: tuple[Mapping[str, Any], ...]
    expected: str | None
    category: str
    values: Mapping[str, Any] = field(repr=False)
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class RowSet:
    """A data set.

    Attributes:
        rows: those that are used.
        rows_read: rows in the data set.
    """

    rows: tuple[Row, ...]
    rows_read: int


def load_rows(
    path: Path,
    *,
    conversations: bool,
    max_rows: int | None = None,
    category_field: str | None = None,
    max_json_bytes: int | None = None,
    checks: Sequence[Callable[[Mapping[str, Any]], object]] = (),
) -> RowSet:
    """Read a data set.

    Args:
        path: a data file, or a directory of them.
        conversations: whether every row must be a conversation with an answer at its end; otherwise any object will do.
        max_rows: rows to use, from the start; all are read and checked.
        category_field: field that tables are divided by; every row, or its ``item``, must have it.
        max_json_bytes: see ``martlet_inputs.rows.read``.
        checks: what suites ask of a row beside; each raises RowError for one that it can't use.

    Raises:
        InvalidArgument: a row can't be used (field, line, remedy), a file is broken, or there are no rows.
    """
    rows: list[Row] = []
    issues: list[RowIssue] = []
    read = 0
    for index, row in enumerate(_read(path, max_json_bytes)):
        read += 1
        try:
            parsed = _parse(row, index, conversations, category_field)
            for check in checks:
                check(parsed.values)
        except RowError as error:
            issues.append(RowIssue(row.line, error.field, error.message, file=row.file))
            continue
        if max_rows is None or len(rows) < max_rows:
            rows.append(parsed)
    if read == 0:
        raise InvalidArgument.field(FIELD, "has no rows; write one JSON object a line", reason="EMPTY_DATASET")
    _refuse(issues, read)
    return RowSet(tuple(rows), read)


def _read(path: Path, max_json_bytes: int | None) -> Any:
    try:
        yield from read_rows(path, max_json_bytes)
    except InvalidArgument as error:
        description = error.violations[0].description if error.violations else error.message
        raise InvalidArgument.field(FIELD, description, reason=error.reason) from error


def _refuse(issues: list[RowIssue], read: int) -> None:
    if not issues:
        return
    message = f"{FIELD}: {len(issues)} of {read} rows can't be evaluated. First: {issues[0].describe()}. Mend them or leave them out"
    violations = [FieldViolation(FIELD, issue.describe()) for issue in issues[:_MAX_VIOLATIONS]]
    raise InvalidArgument(message, reason="BAD_ROWS", violations=violations)


def _parse(row: FileRow, index: int, conversations: bool, category_field: str | None) -> Row:
    if row.issue is not None:
        raise RowError(row.issue.field, row.issue.message)
    values = row.values or {}
    category = _category(values, category_field)
    name = recognise(values)
    if name is None:
        if conversations:
            found = ", ".join(map(str, values)) or "none"
            raise RowError("", f"has no known format (fields: {found}); use one of: {describe_formats()}")
        return Row(index, row.line, (), None, category, values)
    try:
        conversation = check_conversation(to_messages(values, name), "messages", values)
    except RowError:
        if conversations:
            raise
        return Row(index, row.line, (), None, category, values)
    *asked, answer = conversation.messages
    if conversations and not asked:
        raise RowError("messages", "holds an answer and no question; put a user turn before it")
    return Row(index, row.line, tuple(asked), str(answer["content"]), category, values, conversation.tools)


def _category(values: Mapping[str, Any], name: str | None) -> str:
    if name is None:
        return ""
    if name not in values and isinstance(values.get("item"), Mapping):  # rows of graders
        values = values["item"]
    if name not in values:
        raise RowError(
            name, f"is missing, and spec.category_field names it; {close_to(name, [str(k) for k in values])}"
        )
    return str(values[name])
