"""What vLLM's errors mean, for the page of architectures. Imports nothing but the standard library."""

from __future__ import annotations

import re

#: Part of an error's text -> what the page says of it. The first that fits counts; what none fits is said as it is.
_REASONS: tuple[tuple[str, str], ...] = ()


def why_not(message: str) -> str:
    """The reason, in the page's words."""
    return next((words for pattern, words in _REASONS if re.search(pattern, message)), message)
