"""Bodies of processes that go wrong; see test_sft.py."""

from __future__ import annotations

import os
from typing import Any

from martlet_core.errors import InvalidArgument


def fail(*_: Any) -> None:
    """Raises what a recipe may raise."""
    raise InvalidArgument.field("spec.seed", "is odd")


def die(*_: Any) -> None:
    """Ends without a word."""
    os._exit(9)
