"""Which rows each optimizer step takes: a pure function of seed, step and rank, so that resuming at a step needs no replay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Open bins that a row is offered to while packing; more make tighter packs and slower plans.
_OPEN_BINS = 32


@dataclass(frozen=True)
class PlanSettings:
    """What fixes a plan. Two runs with equal settings take the same rows at the same steps.

    Attributes:
        row_count: rows in the training split.
        batch_size: rows (or packs, when packing) a device and micro-batch.
        accumulation: micro-batches a step.
        world_size: processes.
        seed: of the order.
        pack_length: tokens in a pack; 0 turns packing off.
    """

    row_count: int
    batch_size: int
    accumulation: int
    world_size: int
    seed: int
    pack_length: int = 0


class StepPlan:
    """Rows by step. Each epoch visits every row once, in an order of its own; its last step may be smaller than the others."""

    def __init__(
        self, settings: PlanSettings, lengths: Sequence[int], epoch_count: float, max_steps: int | None
    ) -> None:
        """Args: ``lengths`` are tokens a row; ``max_steps`` wins over ``epoch_count``."""
        self.settings = settings
        self._lengths = np.asarray(lengths)
        self._starts = [0]  # first step of each epoch planned so far, and of the one behind
        self._cached: tuple[int, list[list[int]]] | None = None
        self.total_steps = max_steps if max_steps is not None else self._count_steps(epoch_count)

    def rows_of(self, step: int, rank: int) -> list[list[int]]:
        """The micro-batches (lists of row indices) that a rank takes at a step counted from 0; a rank without rows gets an empty one.

        All ranks get the same number of micro-batches, so that they meet at the same synchronisations.
        """
        settings = self.settings
        epoch = self.epoch_of(step)
        units = self._units(epoch)
        size = settings.batch_size * settings.world_size * settings.accumulation
        first = (step - self._starts[epoch]) * size
        mine = units[first : first + size]
        micro = settings.batch_size * settings.world_size
        batches = []
        for start in range(0, len(mine), micro):
            chosen = mine[start : start + micro][rank :: settings.world_size]
            batches.append([row for unit in chosen for row in unit])
        return batches

    def is_epoch_end(self, step: int) -> bool:
        """Whether a step counted from 0 is the last of its epoch."""
        return self.epoch_of(step) != self.epoch_of(step + 1)

    def epoch_of(self, step: int) -> int:
        """The epoch (from 0) that a step (from 0) belongs to."""
        while step >= self._starts[-1]:
            self._plan_next_epoch()
        return int(np.searchsorted(self._starts, step, side="right")) - 1

    def fraction_of(self, step: int) -> float:
        """Epochs done after ``step`` steps."""
        if step == 0:
            return 0.0
        epoch = self.epoch_of(step - 1)
        return epoch + (step - self._starts[epoch]) / (self._starts[epoch + 1] - self._starts[epoch])

    def _count_steps(self, epoch_count: float) -> int:
        whole = math.floor(epoch_count)
        while len(self._starts) < math.ceil(epoch_count) + 1:
            self._plan_next_epoch()
        if whole == epoch_count:
            return self._starts[whole]
        last = self._starts[whole + 1] - self._starts[whole]
        return self._starts[whole] + max(1, math.ceil((epoch_count - whole) * last))

    def _plan_next_epoch(self) -> None:
        settings = self.settings
        units = settings.row_count if not settings.pack_length else len(self._units(len(self._starts) - 1))
        size = settings.batch_size * settings.world_size * settings.accumulation
        self._starts.append(self._starts[-1] + math.ceil(units / size))

    def _units(self, epoch: int) -> list[list[int]]:
        """An epoch's rows in order; each unit is one row, or the rows of one pack."""
        if self._cached is None or self._cached[0] != epoch:
            order = np.random.default_rng([self.settings.seed, epoch]).permutation(self.settings.row_count)
            units = self._pack(order) if self.settings.pack_length else [[int(row)] for row in order]
            self._cached = (epoch, units)
        return self._cached[1]

    def _pack(self, order: np.ndarray) -> list[list[int]]:
        """First fit over a few open packs, in the epoch's order."""
        packs: list[list[int]] = []
        room: list[tuple[int, int]] = []  # (pack, tokens left), oldest first
        for row in order.tolist():
            length = int(self._lengths[row])
            for place, (pack, left) in enumerate(room):
                if left >= length:
                    packs[pack].append(row)
                    room[place] = (pack, left - length)
                    break
            else:
                packs.append([row])
                room.append((len(packs) - 1, self.settings.pack_length - length))
                room = room[-_OPEN_BINS:]
        return packs
