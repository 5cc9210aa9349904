"""Turns pydantic's errors into violations that name the field, the value and the remedy."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from martlet_core.errors import FieldViolation
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
}


def violations_of(error: ValidationError, model: type[BaseModel], prefix: str) -> list[FieldViolation]:
    """One violation for each field at fault, in pydantic's order.

    Args:
        error: what pydantic raised for ``model``.
        model: the model that was being built.
        prefix: path put in front of the fields' names; empty for none.
    """
    found = {}
    for detail in error.errors(include_url=False):
        path = [part for part in detail["loc"] if not _is_pydantic_tag(part)]
        field = ".".join([prefix, *map(str, path)] if prefix else map(str, path))
        found.setdefault(field, FieldViolation(field, _describe(detail, model, path)))
    return list(found.values())


def _is_pydantic_tag(part: int | str) -> bool:
    """Pydantic puts the names of its own validators into the path of unions."""
    return isinstance(part, str) and ("[" in part or part in {"int", "float", "constrained-int", "constrained-float"})


def _describe(detail: Any, model: type[BaseModel], path: list[int | str]) -> str:
    kind, value = str(detail["type"]), detail.get("input")
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return _describe_unknown(str(path[-1]), _model_at(model, path[:-1]))
    if kind == "literal_error":
        return f"is {value!r}; must be one of: {detail['ctx']['expected'].replace(' or ', ', ')}"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind in {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}:
        return f"is {value!r}; must be {_range(_field_at(model, path)) or 'a finite number'}"
    if kind.endswith(("_type", "_parsing", "_from_float")):
        word = _WORDS.get(kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float"), "an object")
        return f"is {_short(value)}; must be {word}"
    return f"is {_short(value)}; {detail['msg']}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _describe_unknown(name: str, model: type[BaseModel] | None) -> str:
    if model is None:
        return "is not known; remove it"
    close = difflib.get_close_matches(name, model.model_fields, n=1)
    known = ", ".join(model.model_fields) or "none"
    return f"is not known; did you mean {close[0]}?" if close else f"is not known; remove it (known: {known})"


def _model_at(model: type[BaseModel], path: list[int | str]) -> type[BaseModel] | None:
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        model = field.annotation
    return model


def _field_at(model: type[BaseModel], path: list[int | str]) -> FieldInfo | None:
    owner = _model_at(model, path[:-1])
    return owner.model_fields.get(str(path[-1])) if owner else None


def _range(field: FieldInfo | None) -> str:
    """The field's range in words (``>= 1 and <= 512``); optional fields keep their bounds in the annotation's arguments."""
    if field is None:
        return ""
    bounds = list(field.metadata)
    for arm in get_args(field.annotation):
        bounds += getattr(arm, "__metadata__", ())
    words = []
    for bound in bounds:
        if isinstance(bound, Ge):
            words.append(f">= {bound.ge}")
        elif isinstance(bound, Gt):
            words.append(f"> {bound.gt}")
        elif isinstance(bound, Le):
            words.append(f"<= {bound.le}")
        elif isinstance(bound, Lt):
            words.append(f"< {bound.lt}")
    return " and ".join(words)
