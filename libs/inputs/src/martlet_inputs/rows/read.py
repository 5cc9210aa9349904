"""Reads rows from JSONL, JSON, CSV and Parquet files with their line numbers.

JSONL is split on "\\n" alone: ``str.splitlines`` would break rows at U+2028 and its kin, which may stand inside JSON strings.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core.errors import InvalidArgument

from martlet_inputs.rows.report import RowIssue

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
MAX_LINE_BYTES = 64 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_PARQUET_BATCH_ROWS = 1024
#: CSV cells that hold JSON when they begin like it.
_JSON_CELLS = ("messages", "conversations", "conversation", "history", "tools", "prompt", "completion")


@dataclass(frozen=True)
class Row:
    """One row as it stands in its file: either ``values`` or the ``issue`` that kept it from being read."""

    line: int
    values: Mapping[str, Any] | None = None
    issue: RowIssue | None = None
    file: str = ""


def read_rows(path: Path, max_json_bytes: int | None = None) -> Iterator[Row]:
    """The rows of a file, or of all data files in a directory in the order of their names.

    A row that can't be read comes with an issue; what makes a whole file unreadable is raised.

    Args:
        path: a data file, or a directory of them.
        max_json_bytes: largest .json file, which is read into memory as a whole; None for any. The other types are read
            row by row.

    Raises:
        InvalidArgument: there is no data file, or a file is not of a known type or broken as a whole.
    """
    files = data_files(path)
    for file in files:
        label = file.name if len(files) > 1 else ""
        kind = _type_of(file)
        if kind == "json" and max_json_bytes is not None and file.stat().st_size > max_json_bytes:
            limit = f"larger than {max_json_bytes} bytes ({max_json_bytes / 2**20:g} MiB)"
            advice = "write one row a line and name it .jsonl, which is read row by row"
            raise _unreadable(file, f"a .json file must not be {limit}; {advice}", "FILE_TOO_LARGE")
        for row in _READERS[kind](file):
            yield _with_file(row, label) if label else row


def data_files(path: Path) -> list[Path]:
    """The data files of a data set; hidden files are left alone.

    Raises:
        InvalidArgument: there is none, or one is of no known type.
    """
    files = (
        [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    )
    if not files:
        raise _unreadable(
            path, "the data set has no files; upload a .jsonl, .json, .csv or .parquet file", "EMPTY_DATASET"
        )
    for file in files:
        if file.stat().st_size == 0:
            raise _unreadable(file, "the file is empty; upload one row a line", "EMPTY_DATASET")
        _type_of(file)
    return files


def _with_file(row: Row, file: str) -> Row:
    issue = row.issue and RowIssue(row.issue.line, row.issue.field, row.issue.message, row.issue.refused, file)
    return Row(row.line, row.values, issue, file)


def _unreadable(path: Path, description: str, reason: str = "UNREADABLE_DATASET") -> InvalidArgument:
    return InvalidArgument.field("training_dataset", f"{path.name}: {description}", reason=reason)


def _type_of(path: Path) -> str:
    """The file's type by its suffix, else by its first bytes."""
    known = SUFFIXES.get(path.suffix.lower())
    if known and known != "json":
        return known
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(_BOM).lstrip()
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"["):
        return "json"
    if head.startswith(b"{"):
        return "jsonl"
    if known:
        return "json"
    raise _unreadable(path, f"type not known; name it with one of: {', '.join(SUFFIXES)}")


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                raise _unreadable(
                    path, f"line {number} is longer than {MAX_LINE_BYTES} bytes; write one JSON object a line"
                )
            if number == 1:
                raw = raw.removeprefix(_BOM)
            if raw.strip():
                yield _parse_line(raw, number)


def _parse_line(raw: bytes, number: int) -> Row:
    try:
        values = json.loads(raw.decode("utf-8").rstrip("\r\n"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return _bad(number, f"is not UTF-8 at byte {error.start + 1}; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return _bad(number, f"is not valid JSON at column {error.pos + 1}: {error.msg}; write one JSON object a line")
    except (ValueError, RecursionError) as error:
        return _bad(number, f"is not valid JSON: {error}")
    return _object_row(values, number)


def _object_row(values: Any, number: int) -> Row:
    if not isinstance(values, dict):
        return _bad(number, f'is {_type_name(values)}, not an object; write rows like {{"messages": [...]}}')
    return Row(number, values)


def _type_name(value: Any) -> str:
    names = {
        list: "an array",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _bad(number: int, message: str) -> Row:
    return Row(number, issue=RowIssue(number, "", message))


def _read_json(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_bytes().removeprefix(_BOM).decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise _unreadable(path, f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"not valid JSON: {error}") from None
    if not isinstance(rows, list):
        raise _unreadable(path, f"is {_type_name(rows)}; a .json file holds an array of rows")
    for number, values in enumerate(rows, start=1):
        yield _object_row(values, number)


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _csv_rows(path, file)
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except csv.Error as error:
        raise _unreadable(path, f"not valid CSV: {error}") from None


def _csv_rows(path: Path, file: io.TextIOBase) -> Iterator[Row]:
    reader = csv.reader(file, strict=True)
    header = next(reader, None)
    if not header or any(not name.strip() for name in header) or len(set(header)) != len(header):
        raise _unreadable(path, "the first line must name every column once")
    before = reader.line_num
    for cells in reader:
        number, before = before + 1, reader.line_num
        if not cells:
            continue
        if len(cells) != len(header):
            yield _bad(
                number, f"has {len(cells)} cells, but the header names {len(header)}; quote cells that hold commas"
            )
            continue
        yield _csv_row(dict(zip(header, cells, strict=True)), number)


def _csv_row(cells: dict[str, str], number: int) -> Row:
    values: dict[str, Any] = {}
    for name, cell in cells.items():
        if name in _JSON_CELLS and cell.lstrip()[:1] in ("[", "{"):
            try:
                values[name] = json.loads(cell, parse_constant=_refuse_constant)
                continue
            except (ValueError, RecursionError):
                if name in ("messages", "conversations", "conversation"):
                    return Row(
                        number,
                        issue=RowIssue(number, name, "is not valid JSON; the cell must hold a JSON array of turns"),
                    )
        values[name] = cell
    return Row(number, values)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, _without_nulls(values))
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, f"not a readable Parquet file: {error}") from None


def _without_nulls(value: Any) -> Any:
    """Parquet fills fields that a row doesn't have with null; JSON rows simply lack them."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


_READERS = {"jsonl": _read_jsonl, "json": _read_json, "csv": _read_csv, "parquet": _read_parquet}
