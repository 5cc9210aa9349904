"""Sums over the examples of a step or a validation, and their means over all processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from martlet_trainer.training.loss import Loss
from martlet_trainer.training.processes import Processes


class Sums:
    """Adds losses up without waiting for the device.

    Args:
        names: what is measured beside the loss.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._sums: dict[str, torch.Tensor | float] = dict.fromkeys(("loss", *names), 0.0)

    def add(self, loss: Loss) -> None:
        """Add a batch."""
        for name, value in {"loss": loss.total.detach(), **loss.sums}.items():
            self._sums[name] = self._sums[name] + value

    def means(self, processes: Processes, weight: float) -> dict[str, float]:
        """Each sum over all processes, divided by the weight of all their examples. The loss is the first."""
        totals = processes.sum([float(value) for value in self._sums.values()])
        return {name: total / weight for name, total in zip(self._sums, totals, strict=True)}
