"""The techniques by name: data (``table.toml``), to which a user's own file may add."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from martlet_core.errors import InvalidArgument

_TABLE = Path(__file__).parent / "table.toml"
_KEYS = {"title", "tuner", "hyperparameters", "learning_rate_factor", "merged"}


@dataclass(frozen=True)
class Technique:
    """A way of training.

    Attributes:
        name: in commands and reports.
        title: for people.
        tuner: a training spec's ``tuner``.
        hyperparameters: on top of those that all share.
        learning_rate_factor: on the learning rate that all share.
        merged: whether the result is merged before it is served.
    """

    name: str
    title: str
    tuner: Mapping[str, Any]
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    learning_rate_factor: float = 1.0
    merged: bool = False


def known(file: Path | None = None) -> dict[str, Technique]:
    """The techniques that there are, in order; those of a file behind ours, or in their place.

    Raises:
        InvalidArgument: the file can't be read, with the key at fault.
    """
    found = _read(_TABLE)
    return found | _read(file) if file is not None else found


def chosen(names: list[str] | None, techniques: Mapping[str, Technique]) -> list[Technique]:
    """Those that were asked for; all for None. InvalidArgument for a name that there isn't."""
    for name in names or ():
        if name not in techniques:
            raise InvalidArgument.field("--techniques", f"{name!r} isn't one of {', '.join(techniques)}")
    return [techniques[name] for name in names] if names else list(techniques.values())


def _read(path: Path) -> dict[str, Technique]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidArgument(f"{path}: there is no such file", reason="FILE_NOT_FOUND") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: is no TOML ({error})", reason="INVALID_TECHNIQUES") from error
    return {name: _technique(path, name, values) for name, values in tables.items()}


def _technique(path: Path, name: str, values: Any) -> Technique:
    def wrong(text: str) -> InvalidArgument:
        return InvalidArgument(f"{path}: [{name}] {text}", reason="INVALID_TECHNIQUES")

    if not isinstance(values, dict):
        raise wrong("must be a table with `title` and `tuner`")
    if unknown := sorted(set(values) - _KEYS):
        raise wrong(f"has no key {unknown[0]!r}; it may have {', '.join(sorted(_KEYS))}")
    kinds = {"title": str, "tuner": dict, "hyperparameters": dict, "learning_rate_factor": (int, float), "merged": bool}
    for key, kind in kinds.items():
        if key in values and not isinstance(values[key], kind):
            raise wrong(f"{key} must be {'a number' if isinstance(kind, tuple) else f'a {kind.__name__}'}")
    if "tuner" not in values:
        raise wrong('has no `tuner`, such as {kind = "lora"}')
    if values.get("learning_rate_factor", 1.0) <= 0:
        raise wrong("learning_rate_factor must be above 0")
    return Technique(name, **{"title": name, **values})
