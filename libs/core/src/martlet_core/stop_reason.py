"""Why a worker ends an attempt early."""

from __future__ import annotations

from enum import Enum


class StopReason(Enum):
    """Why an attempt must end before its work is done; earlier members win over later ones."""

    LOST = "lost"
    CANCEL = "cancel"
    PAUSE = "pause"
    SHUTDOWN = "shutdown"
    PREEMPT = "preempt"
