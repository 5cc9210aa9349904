"""The rows of a data set, for calibrating and measuring. Imports no ML library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from martlet_core.errors import InvalidArgument

#: A row: ``{"messages": [...]}`` or ``{"text": "..."}``.
Row = Mapping[str, Any]


def read_rows(path: Path, field: str) -> list[Row]:
    """All rows of a data set.

    Args:
        path: a file, or a directory of files, with one JSON object a line.
        field: the request's field, for messages.

    Raises:
        InvalidArgument: a row can't be used; names file and line.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*.jsonl") if p.is_file())
    if not files:
        raise InvalidArgument.field(field, "the data set has no .jsonl file", reason="EMPTY_DATASET")
    rows: list[Row] = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
            if line.strip():
                rows.append(_row(line, f"{field}: {file.name}, line {number}", field))
    return rows


def _row(line: str, where: str, field: str) -> Row:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise InvalidArgument.field(field, f"{where} is not valid JSON: {error}") from error
    if isinstance(values, dict) and isinstance(values.get("messages"), list) and values["messages"]:
        return {"messages": values["messages"]}
    if isinstance(values, dict) and isinstance(values.get("text"), str) and values["text"].strip():
        return {"text": values["text"]}
    raise InvalidArgument.field(field, f"{where} has neither messages nor text; write one or the other")


def row_hash(row: Row) -> str:
    """A hash of what a row says, whatever the order of its keys."""
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
