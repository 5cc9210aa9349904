"""Trying again what an outage made fail."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from martlet_core.errors import Unavailable

logger = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_SECONDS = 0.2
_LONGEST_SECONDS = 10.0
_POLL_SECONDS = 0.1


class GaveUp(Exception):
    """The caller's ``give_up`` became true before the call succeeded."""


def never() -> bool:
    """The ``give_up`` of a caller who waits for the end."""
    return False


def stop_if(give_up: Callable[[], bool], what: str) -> None:
    """Between two steps of some work: GaveUp if the caller gave up."""
    if give_up():
        raise GaveUp(what)


def retry_unavailable(what: str, call: Callable[[], T], *, give_up: Callable[[], bool]) -> T:
    """Call until it raises no ``Unavailable``, with growing, jittered pauses of up to 10 s.

    Args:
        what: the work, for the log.
        call: must be safe to repeat.
        give_up: looked at before each call and all through the pauses.

    Raises:
        GaveUp: ``give_up()`` became true.
    """
    pause_seconds = _FIRST_SECONDS
    while not give_up():
        try:
            return call()
        except Unavailable as error:
            logger.warning("%s: %s; trying again in about %.1f s", what, error, pause_seconds)
            _sleep(pause_seconds * random.uniform(0.5, 1.0), give_up)
            pause_seconds = min(pause_seconds * 2, _LONGEST_SECONDS)
    raise GaveUp(what)


def _sleep(seconds: float, give_up: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not give_up() and time.monotonic() < deadline:
        time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
