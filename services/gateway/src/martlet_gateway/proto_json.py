"""Proto messages as plain JSON and back, by their descriptors: a new field of a contract needs no code here.

Differs from protobuf's own JSON form where people read and write it: field names as in the protos, 64-bit integers as
numbers, enums without their prefix and in upper case (``QUEUED``), durations as seconds under ``<name>_seconds``. Input
is checked type by type, with messages that name the field.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status
from martlet_core.errors import FieldViolation, InvalidArgument
from martlet_core.rpc.status import from_status

#: A field's or an enum's descriptor: protobuf's two implementations share no base class.
Descriptor = Any

_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT)


def to_json(message: Message) -> dict[str, Any]:
    """A message as JSON-ready values. Scalars are always there; messages and ``optional`` fields only when they are
    set.
    """
    result: dict[str, Any] = {}
    fields: list[Descriptor] = list(message.DESCRIPTOR.fields)
    for field in fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.is_repeated:
            if _is_map(field):
                result[field.name] = {
                    key: _value_to_json(field.message_type.fields_by_name["value"], value[key]) for key in value
                }
            else:
                result[field.name] = [_value_to_json(field, item) for item in value]
        elif isinstance(value, Duration):
            result[f"{field.name}_seconds"] = value.ToNanoseconds() / 1e9
        else:
            result[field.name] = _value_to_json(field, value)
    return result


def enum_name(descriptor: Descriptor, number: int) -> str:
    """``JOB_STATE_QUEUED`` -> ``QUEUED``; numbers that aren't known as text."""
    value = descriptor.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(_enum_prefix(descriptor))


def fill(message: Message, values: Any, path: str = "") -> None:
    """Set a message's fields from JSON values; None means "not set".

    Args:
        message: set in place.
        values: an object.
        path: of the object in the request, for error messages.

    Raises:
        InvalidArgument: an unknown field or a value of the wrong type; one violation for each.
    """
    violations: list[FieldViolation] = []
    _fill(message, values, path, violations)
    if violations:
        raise InvalidArgument("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)


def close_hint(name: str, known: list[str]) -> str:
    """`` Did you mean ...?`` for a misspelt name; empty when nothing is close."""
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(f'`{c}`' for c in close)}?" if close else ""


def _fill(message: Message, values: Any, path: str, violations: list[FieldViolation]) -> None:
    if not isinstance(values, Mapping):
        violations.append(FieldViolation(path, f"must be an object; got {_shown(values)}."))
        return
    fields: Mapping[str, Descriptor] = message.DESCRIPTOR.fields_by_name
    for key, value in values.items():
        where = f"{path}.{key}" if path else str(key)
        field = fields.get(key)
        if field is None:
            violations.append(FieldViolation(where, f"is not known here.{close_hint(str(key), list(fields))}"))
        elif value is not None:
            _set(message, field, value, where, violations)


def _set(message: Message, field: Descriptor, value: Any, path: str, violations: list[FieldViolation]) -> None:
    target = getattr(message, field.name)
    try:
        if _is_map(field):
            _check(isinstance(value, Mapping), "an object", value)
            item = field.message_type.fields_by_name["value"]
            for key, entry in value.items():
                target[str(key)] = _scalar(item, entry)
        elif field.is_repeated:
            _check(isinstance(value, list), "a list", value)
            if field.message_type is not None:
                for index, entry in enumerate(value):
                    _fill(target.add(), entry, f"{path}[{index}]", violations)
            else:
                target.extend([_scalar(field, entry) for entry in value])
        elif isinstance(target, Struct):
            _check(isinstance(value, Mapping), "an object", value)
            json_format.ParseDict(value, target)
        elif isinstance(target, Duration):
            _check(_is_number(value) and value >= 0, "a number of seconds, at least 0", value)
            target.FromNanoseconds(int(value * 1e9))
        elif isinstance(target, Timestamp):
            _check(isinstance(value, str), "a time as RFC 3339 text", value)
            target.FromJsonString(value)
        elif isinstance(target, Message):
            target.SetInParent()
            _fill(target, value, path, violations)
        else:
            setattr(message, field.name, _scalar(field, value))
    except (ValueError, TypeError, json_format.ParseError) as error:
        violations.append(FieldViolation(path, f"{error}"))


def _scalar(field: Descriptor, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        _check(isinstance(value, str), "a string", value)
        return value
    if field.type == FieldDescriptor.TYPE_BOOL:
        _check(isinstance(value, bool), "true or false", value)
        return value
    if field.type in _FLOATS:
        _check(_is_number(value), "a number", value)
        return float(value)
    if field.type in _INTEGERS:
        low, high = _INTEGERS[field.type]
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        _check(isinstance(whole, int) and not isinstance(whole, bool), "an integer", value)
        _check(low <= whole <= high, f"an integer from {low} to {high}", value)
        return whole
    if field.type == FieldDescriptor.TYPE_ENUM:
        return _enum_number(field.enum_type, value)
    raise TypeError("can't be set in JSON.")


def _enum_number(descriptor: Descriptor, value: Any) -> int:
    prefix = _enum_prefix(descriptor)
    names = {v.name.removeprefix(prefix): v.number for v in descriptor.values if v.number}
    word = value.upper().removeprefix(prefix) if isinstance(value, str) else ""
    _check(word in names, "one of " + ", ".join(name.lower() for name in names), value)
    return names[word]


def _enum_prefix(descriptor: Descriptor) -> str:
    return descriptor.values[0].name.removesuffix("UNSPECIFIED")


def _value_to_json(field: Descriptor, value: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Struct):
        return json_format.MessageToDict(value)
    if isinstance(value, Status):
        return from_status(value).to_dict()
    if isinstance(value, Message):
        return to_json(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return enum_name(field.enum_type, value)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    return value


def _is_map(field: Descriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check(condition: bool, expected: str, value: Any) -> None:
    if not condition:
        raise ValueError(f"must be {expected}; got {_shown(value)}.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
