"""A first look at an uploaded data set: can every row be read at all? What the rows must contain, only the recipe
knows.

Runs in a process of its own for larger files, so that chats don't wait for it: ``python -m
martlet_gateway.dataset_check PATH NAME``.
"""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from martlet_core.errors import InvalidArgument

from martlet_gateway.side_process import IN_PROCESS_BYTES, run_module

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
MAX_ISSUES = 100
_WHOLE_JSON_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class DatasetCheck:
    """What a look at a file found.

    Attributes:
        format: ``jsonl``, ``json``, ``csv`` or ``parquet``.
        rows: rows that can be read; -1 where they weren't counted.
        bad_rows: rows that can't.
        issues: the first hundred of those: ``line 812: ...``.
    """

    format: str
    rows: int
    bad_rows: int
    issues: tuple[str, ...]

    def summary(self) -> str:
        """The issues as one text; empty when there are none."""
        if not self.bad_rows:
            return ""
        shown = "; ".join(self.issues[:5])
        more = f" (and {self.bad_rows - 5} more rows)" if self.bad_rows > 5 else ""
        return f"{self.bad_rows} of {self.rows + self.bad_rows} rows can't be read: {shown}{more}"


async def check_dataset(path: Path, filename: str, size_bytes: int) -> DatasetCheck:
    """Look at a data set.

    Raises:
        InvalidArgument: the file is empty, of a format that isn't known, or holds no readable row.
    """
    if size_bytes == 0:
        raise InvalidArgument.field(
            "file", f"`{filename}` is empty; a data set needs at least one row.", reason="EMPTY_FILE"
        )
    kind = _format(filename)
    if size_bytes <= IN_PROCESS_BYTES:
        check = await asyncio.to_thread(_check, path, kind)
    else:
        check = await _check_in_process(path, filename)
    if check.rows == 0:
        reason = "EMPTY_FILE" if not check.bad_rows else "INVALID_FILE_FORMAT"
        text = check.summary() or "it holds no rows; a data set needs at least one."
        raise InvalidArgument.field("file", f"`{filename}` can't be used as {kind}: {text}", reason=reason)
    return check


def _format(filename: str) -> str:
    suffix = Path(filename).suffix.lower()
    if suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise InvalidArgument.field(
            "file",
            f"`{filename:.100}` is of no known format; name it *{known.replace(', ', ', *')}.",
            reason="INVALID_FILE_FORMAT",
        )
    return FORMATS[suffix]


async def _check_in_process(path: Path, filename: str) -> DatasetCheck:
    fields = await run_module("martlet_gateway.dataset_check", str(path), filename)
    return DatasetCheck(fields["format"], fields["rows"], fields["bad_rows"], tuple(fields["issues"]))


def _check(path: Path, kind: str) -> DatasetCheck:
    return {"jsonl": _check_jsonl, "json": _check_json, "csv": _check_csv, "parquet": _check_parquet}[kind](path)


def _check_jsonl(path: Path) -> DatasetCheck:
    rows, bad, issues = 0, 0, []
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            fault = _row_fault(line)
            if fault is None:
                rows += 1
                continue
            bad += 1
            if len(issues) < MAX_ISSUES:
                issues.append(f"line {number}: {fault}")
    return DatasetCheck("jsonl", rows, bad, tuple(issues))


def _row_fault(line: bytes) -> str | None:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not valid JSON ({error.msg} at column {error.colno}); each line must be one JSON object"
    return (
        None
        if isinstance(row, dict)
        else f"is JSON of type {type(row).__name__}, but each line must be one JSON object"
    )


def _check_json(path: Path) -> DatasetCheck:
    if path.stat().st_size > _WHOLE_JSON_BYTES:
        with open(path, "rb") as stream:
            first = stream.read(4096).lstrip()[:1]
        if first != b"[":
            return DatasetCheck("json", 0, 1, ("the file must be one JSON list of objects",))
        return DatasetCheck("json", -1, 0, ())
    try:
        values = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        return DatasetCheck("json", 0, 1, (f"line {error.lineno}: not valid JSON ({error.msg})",))
    if not isinstance(values, list):
        return DatasetCheck(
            "json", 0, 1, (f"the file is a JSON {type(values).__name__}, but must be one list of objects",)
        )
    faults = [f"row {i}: must be an object" for i, value in enumerate(values, 1) if not isinstance(value, dict)]
    return DatasetCheck("json", len(values) - len(faults), len(faults), tuple(faults[:MAX_ISSUES]))


def _check_csv(path: Path) -> DatasetCheck:
    rows, bad, issues = 0, 0, []
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            columns = len(next(reader, []))
            for row in reader:
                if len(row) == columns:
                    rows += 1
                elif row:
                    bad += 1
                    if len(issues) < MAX_ISSUES:
                        issues.append(f"line {reader.line_num}: has {len(row)} cells, but the header has {columns}")
    except (csv.Error, UnicodeDecodeError) as error:
        return DatasetCheck("csv", 0, 1, (f"not readable as CSV in UTF-8: {error}",))
    return DatasetCheck("csv", rows, bad, tuple(issues))


def _check_parquet(path: Path) -> DatasetCheck:
    with open(path, "rb") as stream:
        head = stream.read(4)
        stream.seek(max(0, path.stat().st_size - 4))
        tail = stream.read(4)
    if head != b"PAR1" or tail != b"PAR1":
        return DatasetCheck("parquet", 0, 1, ("the file doesn't begin and end as Parquet does; it may be cut off",))
    return DatasetCheck("parquet", -1, 0, ())


if __name__ == "__main__":
    print(json.dumps(asdict(_check(Path(sys.argv[1]), _format(sys.argv[2])))))
