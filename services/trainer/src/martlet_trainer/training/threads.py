"""How many threads compute on a CPU: all of them, or fewer where other programs keep cores busy.

The threads of an operation wait for one another at its end, and one that has lost its core to another program keeps all
of them waiting for a time slice of the scheduler. Measured on two cores with one other busy process: 40 tokens/s with two
threads and 179 with one; on a quiet machine 245 and 177.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable

#: Steps before the first trial of another choice, behind the first step of all, which warms up.
_FIRST_STEPS = 3
#: Steps that a trial takes.
_TRIAL_STEPS = 2
#: Steps between two trials; twice as many after each trial that changed nothing, up to the largest.
_BETWEEN_STEPS, _LARGEST_BETWEEN_STEPS = 30, 240
#: A step this much slower than usual, twice in a row, calls for a trial at once.
_SLOW = 0.6
#: What another number must bring, so that noise alone changes nothing.
_BETTER = 1.05
#: Shorter steps tell nothing, and there is nothing to win.
_SHORTEST_SECONDS = 0.2


class ThreadGovernor:
    """Tries now and then whether another number computes more tokens a second, and keeps to the better one. Numbers are all,
    all but one, half, and one.

    Args:
        threads: all that this process may use; with one there is no choice.
        set_threads: ``torch.set_num_threads``.
    """

    def __init__(self, threads: int, set_threads: Callable[[int], None]) -> None:
        self._choices = sorted({threads, max(1, threads - 1), max(1, threads // 2), 1}, reverse=True)
        self._set_threads = set_threads
        self._chosen = threads
        self._candidate = threads
        self._turn = 0
        self._rates: deque[float] = deque(maxlen=8)
        self._trial: list[float] | None = None
        self._between = _BETWEEN_STEPS
        self._left = _FIRST_STEPS
        self._slow_steps = 0
        self._is_warm = False

    @property
    def threads(self) -> int:
        """How many compute the next step."""
        return self._chosen if self._trial is None else self._candidate

    def step_done(self, tokens: float, seconds: float) -> None:
        """Take note of a step, and set the number of threads for the next one."""
        if len(self._choices) == 1 or (self._trial is None and seconds < _SHORTEST_SECONDS):
            return  # a trial that was begun is ended, however fast the other number is
        if not self._is_warm:
            self._is_warm = True
            return
        rate = tokens / seconds
        if self._trial is not None:
            self._trial.append(rate)
            if len(self._trial) == _TRIAL_STEPS:
                self._judge(statistics.mean(self._trial))
            return
        self._left -= 1
        usual = statistics.median(self._rates) if self._rates else rate
        self._slow_steps = self._slow_steps + 1 if rate < _SLOW * usual else 0
        self._rates.append(rate)
        if self._left <= 0 or self._slow_steps >= 2:
            self._begin_trial()

    def _begin_trial(self) -> None:
        others = [choice for choice in self._choices if choice != self._chosen]
        self._candidate = others[self._turn % len(others)]
        self._turn += 1
        self._trial = []
        self._set_threads(self._candidate)

    def _judge(self, rate: float) -> None:
        """End a trial: keep to the better choice."""
        if rate > _BETTER * statistics.mean(list(self._rates)[-_TRIAL_STEPS:]):
            self._chosen = self._candidate
            self._rates.clear()
            self._rates.append(rate)
            self._between = _BETWEEN_STEPS
        else:
            self._between = min(2 * self._between, _LARGEST_BETWEEN_STEPS)
            self._set_threads(self._chosen)
        self._trial, self._left, self._slow_steps = None, self._between, 0
