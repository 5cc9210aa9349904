"""How sure is a gain? Accuracy before and after on the same rows, with a paired bootstrap interval."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Gain:
    """A gain in accuracy; all values are shares, 0.0 to 1.0 (``low`` to ``high`` is the 95 % interval of ``gain``).

    Attributes:
        rows: rows compared.
        before: share of right answers before.
        after: share of right answers after.
        gain: ``after - before``.
    """

    rows: int
    before: float
    after: float
    gain: float
    low: float
    high: float


def paired_gain(before: Sequence[bool], after: Sequence[bool], *, resamples: int = 4000, seed: int = 0) -> Gain:
    """The gain on rows that both were asked, with a 95 % percentile bootstrap over the rows.

    Rows are drawn in pairs: how hard a row is cancels out, so the interval is narrower than that of two separate
    samples (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13).

    Args:
        before: whether each row was answered right before.
        after: the same rows, in the same order, after.
        resamples: bootstrap samples.
        seed: makes the interval repeatable.

    Raises:
        ValueError: if the lengths differ or there are no rows.
    """
    if len(before) != len(after) or not before:
        raise ValueError(
            f"the same rows must be compared, at least one: got {len(before)} before and {len(after)} after"
        )
    count = len(before)
    # Each row gains +1, 0 or -1.
    differences = [int(b) - int(a) for a, b in zip(before, after, strict=True)]
    source = random.Random(seed)
    gains = sorted(sum(source.choices(differences, k=count)) / count for _ in range(resamples))
    return Gain(
        rows=count,
        before=sum(before) / count,
        after=sum(after) / count,
        gain=sum(differences) / count,
        low=gains[int(0.025 * resamples)],
        high=gains[min(resamples - 1, int(0.975 * resamples))],
    )
