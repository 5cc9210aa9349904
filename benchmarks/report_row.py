"""A line of ``RESULTS.md``, and what lines have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """A line of the page.

    Attributes:
        what: what was measured.
        name: the benchmark, whose JSON holds the figure.
        aim: in words.
        seen: the figure, from the JSON.
        met: whether the aim is met; None where there is none.
    """

    what: str
    name: str
    aim: str
    seen: Callable[[Any], str]
    met: Callable[[Any], bool | None] = lambda record: None


def rounds_of(record: Any) -> str:
    """How many rounds a figure is of."""
    return f"the median of {record['rounds']} rounds" if record["rounds"] > 1 else "one round"
