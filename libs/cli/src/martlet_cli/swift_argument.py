"""One of SWIFT's arguments: its name, its place in a fine-tuning request, and how its text is read."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any


def boolean(text: str) -> bool:
    """``true`` and ``false`` as SWIFT takes them."""
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def sharding(text: str) -> str:
    """What ``--deepspeed`` and ``--fsdp`` ask for."""
    found = {"zero2": "zero2", "zero3": "zero3", "fsdp2": "zero3"}.get(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is none of zero2, zero3, fsdp2")
    return found


@dataclass(frozen=True)
class Argument:
    """One argument.

    Attributes:
        name: SWIFT's name.
        target: dotted place in the request's ``martlet`` object; empty for those that ``request`` treats by hand.
        kind: converts the text; ``boolean`` ones may stand without a value.
        help: what it does, with its unit and default.
        many: takes several values.
        older: names it had in earlier versions of SWIFT.
        choices: what is allowed; None: any.
    """

    name: str
    target: str
    kind: Any
    help: str
    many: bool = False
    older: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None

    @property
    def attribute(self) -> str:
        """Where the parser puts its value."""
        return self.name.removeprefix("--")
