"""JSON Schema of a run's definition, for editors: ``python -m martlet_gateway.runs.schema > docs/schemas/run.schema.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

_REFERENCE = {"type": "string", "pattern": r"\$\{.+\}", "description": "A reference to an input or a step's output."}
_NUMBERS = {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}
_ID = "^[a-z][a-z0-9_]{0,39}$"


def run_schema() -> dict[str, Any]:
    """The schema of a whole definition."""
    from martlet_gateway.runs.steps import KINDS

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Martlet run",
        "description": "A small graph of jobs; docs/life-of-a-run.md tells of it.",
        "type": "object",
        "required": ["name", "steps"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 128, "description": "For people."},
            "description": {"description": "For people; not read."},
            "inputs": {
                "type": "object",
                "description": "Names and defaults; null: a value must be given at submission.",
                "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"},
                "additionalProperties": {"type": ["string", "number", "boolean", "null", "array"]},
            },
            "reuse": {
                "type": "boolean",
                "default": False,
                "description": "Let earlier results of the same work stand for steps.",
            },
            "steps": {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 100,
                "propertyNames": {"pattern": _ID},
                "additionalProperties": {"oneOf": [_step(kind) for kind in KINDS.values()]},
            },
        },
    }


def of_message(descriptor: Any, required: Sequence[str] = ()) -> dict[str, Any]:
    """The schema of a proto message as ``proto_json.fill`` reads it. Values may be references."""
    properties: dict[str, Any] = {}
    for field in descriptor.fields:
        value = _value(field)
        if field.is_repeated and not _is_map(field):
            value = {"type": "array", "items": value}
        properties[field.name] = value
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": list(required)} if required else {})


def _step(kind: Any) -> dict[str, Any]:
    outputs = "; ".join(f"{name}: {text}" for name, text in kind.outputs.items())
    return {
        "title": kind.kind,
        "description": f"{kind.title}{f' Outputs: {outputs}' if outputs else ''}",
        "type": "object",
        "required": ["kind", "with"],
        "additionalProperties": False,
        "properties": {
            "kind": {"const": kind.kind},
            "needs": {
                "type": "array",
                "items": {"type": "string", "pattern": _ID},
                "description": "Steps to wait for; those that references name are waited for anyway.",
            },
            "reuse": {"type": "boolean", "description": "As the run's, for this step."},
            "with": kind.schema(),
        },
    }


def _value(field: Any) -> dict[str, Any]:
    if _is_map(field):
        return {"type": "object"}
    if field.message_type is not None:
        if field.message_type.full_name.startswith("google.protobuf."):
            return {"type": "object"}
        return of_message(field.message_type)
    if field.type == FieldDescriptor.TYPE_STRING:
        return {"type": "string"}
    if field.type == FieldDescriptor.TYPE_BOOL:
        return {"anyOf": [{"type": "boolean"}, _REFERENCE]}
    if field.type == FieldDescriptor.TYPE_ENUM:
        prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        names = [value.name.removeprefix(prefix).lower() for value in field.enum_type.values if value.number]
        return {"anyOf": [{"enum": names}, _REFERENCE]}
    return {"anyOf": [{"type": "number" if field.type in _NUMBERS else "integer"}, _REFERENCE]}


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def main() -> int:
    """Print the schema."""
    json.dump(run_schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
