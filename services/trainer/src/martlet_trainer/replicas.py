"""What recipes know of replicas that answer for the model that is trained: functions that were made outside. Imports no ML library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Question:
    """A question as tokens, and what its answers are drawn with.

    Attributes:
        tokens: the whole prompt.
        seed: the same one draws the same answers, as far as the engine does.
    """

    tokens: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn.

    Attributes:
        count: answers to each question.
        max_tokens: longest answer.
        temperature: 0 takes the likeliest token each time.
    """

    count: int
    max_tokens: int
    temperature: float


@dataclass(frozen=True)
class Said:
    """An answer.

    Attributes:
        tokens: those that were drawn, the end among them where one was.
        log_probs: of each, under the weights that drew it, at temperature 1.
    """

    tokens: Sequence[int]
    log_probs: Sequence[float]


class Replica(Protocol):
    """Replicas that are given the adapter now and then, and answer with it."""

    def publish(self, number: int, save: Callable[[Path], None]) -> None:
        """Give them the adapter that ``save`` writes into a directory. For the first process of a training alone.

        Args:
            number: higher each time.
            save: writes a peft directory.

        Raises:
            StopRequested: the job is to stop.
            Unavailable: it wasn't published in time.
            MartletError: it can't be.
        """
        ...

    def ask(self, number: int, questions: Sequence[Question], drawing: Drawing) -> Sequence[Sequence[Said]]:
        """The answers to each question by the adapter that was published under a number; replicas that are away are waited for.

        Raises:
            StopRequested: the job is to stop.
            Unavailable: no answer came in time.
            FailedPrecondition: they refuse, or answer with something else.
        """
        ...
