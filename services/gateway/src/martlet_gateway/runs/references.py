"""References in a run's texts: ``${train.adapter}``, ``${steps.train.adapter}``, ``${inputs.base_model}``.

A text that is nothing but one reference takes the value with its type; among other words its text is put in. ``$${``
stands for a plain ``${``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}")
_PARTS = re.compile(r"\s*(?:steps\.)?([A-Za-z_][\w-]*)\.([A-Za-z_][\w.-]*)\s*")

INPUTS = "inputs"


class ReferenceTextError(ValueError):
    """A reference that can't be read, for people."""


@dataclass(frozen=True)
class Reference:
    """``${source.name}``: a step's output, or an input if the source is ``inputs``."""

    source: str
    name: str
    text: str


def references(value: Any, path: str) -> Iterator[tuple[str, str, list[str]]]:
    """The texts with references in a value, at any depth: their path, the text, and what stands in each ``${}``."""
    if isinstance(value, str):
        inner = [found[1] for found in _REFERENCE.finditer(value) if found[1] is not None]
        if inner or "${" in value.replace("$${", ""):
            yield path, value, inner
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from references(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from references(item, f"{path}[{index}]")


def parse(inner: str) -> Reference:
    """What stands between the braces. ReferenceTextError says what is wrong with it."""
    found = _PARTS.fullmatch(inner)
    if found is None:
        raise ReferenceTextError(
            f"`${{{inner:.60}}}` can't be read; write `${{step.output}}` or `${{inputs.name}}` (`$${{` for a plain `${{`)."
        )
    return Reference(found[1], found[2], f"${{{inner}}}")


def substitute(value: Any, find: Callable[[Reference], Any], *, last: bool = True) -> Any:
    """A value with its references replaced.

    Args:
        value: any depth of dicts and lists.
        find: the value of a reference, or the reference itself to leave it as it is.
        last: nothing is replaced after this, so ``$${`` becomes ``${``.
    """
    if isinstance(value, dict):
        return {key: substitute(item, find, last=last) for key, item in value.items()}
    if isinstance(value, list):
        return [substitute(item, find, last=last) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole is not None and whole[1] is not None:
        found = find(parse(whole[1]))
        return value if isinstance(found, Reference) else found

    def put(match: re.Match[str]) -> str:
        if match[1] is None:
            return "${" if last else match[0]
        inner = find(parse(match[1]))
        return match[0] if isinstance(inner, Reference) else _text(inner)

    return _REFERENCE.sub(put, value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
