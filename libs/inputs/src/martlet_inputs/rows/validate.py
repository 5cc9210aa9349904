"""Validates a data set row by row without a tokenizer: at submission by the service, and again by the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from martlet_core.errors import FieldViolation, InvalidArgument

from martlet_inputs.rows.formats import Conversation, RowError
from martlet_inputs.rows.kinds import CONVERSATIONS, RowKind
from martlet_inputs.rows.read import read_rows
from martlet_inputs.rows.report import DataReport, RowIssue, describe_place

#: Violations an error carries; its message counts the rest.
_MAX_VIOLATIONS = 20


T = TypeVar("T")


@dataclass(frozen=True)
class ValidRow(Generic[T]):
    """A row that passed: where it stands, and what it says."""

    line: int
    content: T
    file: str = ""


def valid_rows(
    path: Path, report: DataReport, kind: RowKind[T], max_json_bytes: int | None = None
) -> Iterator[ValidRow[T]]:
    """The rows that pass, in order; those that don't are counted in ``report``, and so is the format.

    The caller counts a row as used (``report.add_used``): tokenizing may still refuse it.

    Raises:
        InvalidArgument: a file is broken as a whole.
    """
    for row in read_rows(path, max_json_bytes):
        if row.issue is not None:
            report.add_refused(row.issue)
            continue
        try:
            content = kind.read(row.values or {}, report)
        except RowError as error:
            report.add_refused(RowIssue(row.line, error.field, error.message, file=row.file))
            continue
        for label in kind.labels(content):
            report.labels.setdefault(label, describe_place(row.line, row.file))
        yield ValidRow(row.line, content, row.file)


def valid_conversations(path: Path, report: DataReport) -> Iterator[ValidRow[Conversation]]:
    """``valid_rows`` of conversations."""
    return valid_rows(path, report, CONVERSATIONS)


def validate_dataset(path: Path, max_json_bytes: int | None = None, kind: RowKind[T] = CONVERSATIONS) -> DataReport:
    """Validate a file, or a directory of files, without a tokenizer; ``max_json_bytes`` as in ``read_rows``.

    Raises:
        InvalidArgument: a file is broken as a whole, or there are no rows.
    """
    report = DataReport()
    for row in valid_rows(path, report, kind, max_json_bytes):
        report.add_used()
        report.longest_row_bytes = max(report.longest_row_bytes, kind.text_bytes(row.content))
    return report


def check_dataset(
    path: Path, on_bad_rows: str, field: str = "spec.training_dataset", kind: RowKind[Any] = CONVERSATIONS
) -> DataReport:
    """Validate a data set and refuse it if it can't be trained on; see ``require_usable``."""
    report = validate_dataset(path, kind=kind)
    require_usable(report, on_bad_rows, field, kind)
    return report


def require_usable(
    report: DataReport, on_bad_rows: str, field: str = "spec.training_dataset", kind: RowKind[Any] = CONVERSATIONS
) -> None:
    """Refuse a data set by its report.

    Args:
        report: counts over the whole data set.
        on_bad_rows: ``fail`` or ``skip``.
        field: the request's field that named the data set.
        kind: what the rows had to be.

    Raises:
        InvalidArgument: reason EMPTY_DATASET if no row is left, BAD_ROWS if one was refused and ``on_bad_rows`` is ``fail``.
    """
    refused = [issue for issue in report.issues if issue.refused]
    violations = [FieldViolation(field, issue.describe()) for issue in refused[:_MAX_VIOLATIONS]]
    first = f" First: {refused[0].describe()}." if refused else ""
    if report.rows_read == 0:
        raise InvalidArgument.field(field, "has no rows; write one JSON object a line", reason="EMPTY_DATASET")
    if report.rows_used == 0:
        message = f"{field}: none of its {report.rows_read} rows can be used.{first} Formats: {kind.formats}"
        raise InvalidArgument(message, reason="BAD_ROWS", violations=violations)
    if report.rows_refused and on_bad_rows == "fail":
        counts = f"{report.rows_refused} of {report.rows_read} rows were refused."
        message = f"{field}: {counts}{first} Mend these rows, or set data.on_bad_rows to skip to leave them out"
        raise InvalidArgument(message, reason="BAD_ROWS", violations=violations)
