"""The rows of a data set, for calibrating and measuring. Imports no ML library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from martlet_core.errors import FieldViolation, InvalidArgument
from martlet_inputs.rows.report import DataReport
from martlet_inputs.rows.validate import valid_conversations

#: ``{"messages": [...]}``, with ``tools`` where there are any, or ``{"text": "..."}`` (built-in texts only).
Row = Mapping[str, Any]

_MAX_VIOLATIONS = 20


def read_rows(path: Path, field: str) -> list[Row]:
    """All rows of a data set, in any of the formats that trainings take.

    Args:
        path: a file, or a directory of files.
        field: the request's field, for messages.

    Raises:
        InvalidArgument: there are none, or some can't be used; names lines.
    """
    report = DataReport()
    rows: list[Row] = []
    for found in valid_conversations(path, report):
        report.add_used()
        row: dict[str, Any] = {"messages": list(found.content.messages)}
        if found.content.tools:
            row["tools"] = list(found.content.tools)
        rows.append(row)
    require_whole(report, field)
    return rows


def require_whole(report: DataReport, field: str) -> None:
    """Refuse a data set with rows that can't be used: none is left out in silence.

    Raises:
        InvalidArgument: reason EMPTY_DATASET or BAD_ROWS, with the first rows at fault.
    """
    if not report.rows_read:
        raise InvalidArgument.field(field, "has no rows; write one JSON object a line", reason="EMPTY_DATASET")
    refused = [issue for issue in report.issues if issue.refused]
    if refused:
        raise InvalidArgument(
            f"{field}: {report.rows_refused} of {report.rows_read} rows can't be used. First: {refused[0].describe()}."
            " Mend these rows or take them out",
            reason="BAD_ROWS",
            violations=[FieldViolation(field, issue.describe()) for issue in refused[:_MAX_VIOLATIONS]],
        )


def row_hash(row: Row) -> str:
    """A hash of what a row says, whatever the format it was written in."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def check_disjoint(calibration: Sequence[Row], evaluation: Sequence[Row]) -> None:
    """Refuse an evaluation set that shares rows with the calibration set.

    Raises:
        InvalidArgument: says how many.
    """
    known = {row_hash(row) for row in calibration}
    if shared := sum(row_hash(row) in known for row in evaluation):
        raise InvalidArgument.field(
            "spec.evaluation_dataset",
            f"shares {shared} of its {len(evaluation)} rows with the calibration set; a model isn't measured on texts it"
            " was calibrated with. Take them out of one of the two",
            reason="CALIBRATION_OVERLAPS_EVALUATION",
        )
