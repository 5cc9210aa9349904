"""Rows of an eval's run: can they be graded? Looked at before the run is accepted.

Larger files in a process of its own: ``python -m martlet_gateway.eval_rows PATH NEEDS``, the second a file with ``RowNeeds`` as JSON.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from martlet_core.errors import InvalidArgument

from martlet_gateway.side_process import IN_PROCESS_BYTES, run_module

FORMATS = (".jsonl", ".ndjson")
_FIELD = "data_source.source"
_MAX_ISSUES = 20
_SHOWN = 5
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class RowNeeds:
    """What each row must have.

    Attributes:
        item_schema: its item's required fields and the types of its fields are checked, one level deep.
        sample_fields: fields of its sample that graders name.
        reference: steps below the item to a list of messages; empty for none.
        is_chat: whether a row without ``item`` is an item itself, as in files for fine-tuning.
    """

    item_schema: Mapping[str, Any] = field(default_factory=dict)
    sample_fields: Sequence[str] = ()
    reference: Sequence[str] = ()
    is_chat: bool = False


async def check_rows(path: Path, needs: RowNeeds) -> int:
    """Look at a file of JSON lines; returns how many rows it has.

    Raises:
        InvalidArgument: ``BAD_ROWS`` with the first rows at fault, or ``EMPTY_DATASET``.
    """
    if (await asyncio.to_thread(path.stat)).st_size <= IN_PROCESS_BYTES:
        rows, bad, issues = await asyncio.to_thread(_check, path, needs)
    else:
        needs_path = path.with_name(f"{path.name}.needs")  # a schema may be too long for a command's argument
        needs_path.write_bytes(orjson.dumps(asdict(needs)))
        rows, bad, issues = await run_module("martlet_gateway.eval_rows", str(path), str(needs_path))
    if bad:
        more = f" (and {bad - _SHOWN} more)" if bad > _SHOWN else ""
        text = f"{bad} of {rows} rows don't fit this eval: {'; '.join(issues[:_SHOWN])}{more}."
        raise InvalidArgument.field(_FIELD, text, reason="BAD_ROWS")
    if rows == 0:
        raise InvalidArgument.field(_FIELD, "has no rows; write one JSON object a line.", reason="EMPTY_DATASET")
    return rows


def _check(path: Path, needs: RowNeeds) -> tuple[int, int, list[str]]:
    rows, bad, issues = 0, 0, []
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            rows += 1
            fault = _fault(line, needs)
            if fault:
                bad += 1
                if len(issues) < _MAX_ISSUES:
                    issues.append(f"row {rows} (line {number}): {fault}")
    return rows, bad, issues


def _fault(line: bytes, needs: RowNeeds) -> str | None:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"is not valid JSON ({error.msg} at column {error.colno})"
    if not isinstance(row, dict):
        return f"is JSON of type {type(row).__name__}, but must be an object"
    item = row if needs.is_chat and "item" not in row else row.get("item")
    if not isinstance(item, dict):
        return 'has no object `item`; write {"item": {...}}'
    return _item_fault(item, needs.item_schema) or _sample_fault(row, needs) or _reference_fault(item, needs)


def _item_fault(item: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    for name in schema.get("required", ()):
        if name not in item:
            return (
                f"item has no `{name}`, which the item schema requires (it has: {', '.join(map(str, item)) or 'none'})"
            )
    for name, part in schema.get("properties", {}).items():
        kinds = part.get("type") if isinstance(part, Mapping) else None
        if name in item and kinds is not None and not _is_one_of(item[name], kinds):
            wanted = kinds if isinstance(kinds, str) else " or ".join(map(str, kinds))
            return f"item.{name} is {type(item[name]).__name__}, but the item schema says {wanted}"
    return None


def _is_one_of(value: Any, kinds: Any) -> bool:
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        types = _TYPES.get(str(kind))
        if types is None or (isinstance(value, types) and (not isinstance(value, bool) or kind == "boolean")):
            return True
        if kind == "integer" and isinstance(value, float) and value.is_integer():
            return True
    return False


def _sample_fault(row: Mapping[str, Any], needs: RowNeeds) -> str | None:
    sample = row.get("sample")
    for name in needs.sample_fields:
        if not isinstance(sample, dict) or name not in sample:
            return f"has no sample.{name}, which a grader names"
    return None


def _reference_fault(item: Any, needs: RowNeeds) -> str | None:
    if not needs.reference:
        return None
    value, path = item, "item"
    for step in needs.reference:
        path = f"{path}.{step}"
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, ValueError, TypeError):
            return f"has no {path}, which input_messages refers to"
    is_prompt = isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value)
    return None if is_prompt else f"{path} is no list of messages with role and content"


if __name__ == "__main__":
    print(orjson.dumps(_check(Path(sys.argv[1]), RowNeeds(**orjson.loads(Path(sys.argv[2]).read_bytes())))).decode())
