"""What a run makes of a stage's errors."""

from __future__ import annotations

from martlet_core.errors import MartletError

#: Errors that another try may mend: the step waits instead of failing.
_PASSING_CODES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED", "INTERNAL"})


def is_passing(error: MartletError) -> bool:
    """Whether trying again later may help."""
    return error.code in _PASSING_CODES
