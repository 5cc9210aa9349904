"""How sure is a number, and how sure a difference? Seeded bootstrap intervals, exact McNemar and randomization tests.

Every metric is a function of a sum over rows: each row adds a vector (right or not; the log-probability and the tokens of an answer; the
counts that BLEU is made of), and the metric is computed from the sums. So one bootstrap serves means, F1, perplexity and BLEU alike:
Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8, 13 and 15; Koehn, Statistical Significance
Tests for Machine Translation Evaluation (2004).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

#: Bootstrap samples and random permutations.
RESAMPLES = 2000
#: Rows whose signs are tried in all ways; beyond that, ways are drawn.
_EXACT_ROWS = 13
#: Numbers of a block of weights: about 32 MB.
_BLOCK = 4_000_000

#: From sums over rows (samples, columns), and how many rows there were, to the metric (samples,).
Finish = Callable[[np.ndarray], np.ndarray]


def mean(sums: np.ndarray) -> np.ndarray:
    """The mean, from sums of (value, 1)."""
    return sums[:, 0] / sums[:, 1]


@dataclass(frozen=True)
class Measure:
    """A metric of one target, ready to be resampled.

    Attributes:
        name: within its suite.
        rows: what each line of ``stats`` is about, so that targets can be paired.
        stats: what each row adds (rows, columns).
        finish: the metric from the sums.
        values: the metric of each row alone, for flips and tests; None where a single row has none.
        is_binary: the values are 0 and 1.
        higher_is_better: the direction of good.
        unit: for people; empty for shares and scores.
        interval: low and high where something else measured them; then nothing is resampled.
        compared: whether targets are set beside one another by it.
    """

    name: str
    rows: tuple[Hashable, ...]
    stats: np.ndarray
    finish: Finish = mean
    values: np.ndarray | None = None
    is_binary: bool = False
    higher_is_better: bool = True
    unit: str = ""
    interval: tuple[float, float] | None = None
    compared: bool = True

    @property
    def value(self) -> float:
        """The metric over all rows; NaN without rows."""
        if not len(self.rows):
            return math.nan
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(self.finish(self.stats.sum(axis=0, keepdims=True))[0])

    def only(self, rows: Sequence[Hashable]) -> Measure:
        """The same over some of the rows, in the order given."""
        place = {row: index for index, row in enumerate(self.rows)}
        chosen = np.array([place[row] for row in rows], dtype=int)
        values = None if self.values is None else self.values[chosen]
        return Measure(
            self.name,
            tuple(rows),
            self.stats[chosen],
            self.finish,
            values,
            self.is_binary,
            self.higher_is_better,
            self.unit,
        )


def mean_measure(
    name: str,
    rows: Sequence[Hashable],
    values: Sequence[float] | np.ndarray,
    *,
    higher_is_better: bool = True,
    unit: str = "",
    compared: bool = True,
    is_binary: bool | None = None,
) -> Measure:
    """A metric that is the mean of its rows' values; it is taken for a yes or no where all of them are 0 or 1, unless said."""
    numbers = np.asarray(values, dtype=float)
    stats = np.stack([numbers, np.ones_like(numbers)], axis=1)
    if is_binary is None:
        is_binary = bool(np.isin(numbers, (0.0, 1.0)).all())
    return Measure(
        name,
        tuple(rows),
        stats,
        mean,
        numbers,
        is_binary=is_binary,
        higher_is_better=higher_is_better,
        unit=unit,
        compared=compared,
    )


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval; ``low`` and ``high`` are None where there is none (fewer than two rows)."""

    value: float
    low: float | None
    high: float | None
    rows: int


@dataclass(frozen=True)
class Difference:
    """A target less the baseline, on the rows that both answered.

    Attributes:
        difference: of the metrics.
        low: lower end of its 95 % interval.
        high: upper end.
        p_value: how likely a difference at least as large is where there is none; two-sided.
        test: ``mcnemar`` or ``randomization``.
        rows: rows compared.
        gained: rows that the target has right and the baseline wrong; empty for metrics that are no yes or no.
        lost: rows that the target has wrong and the baseline right.
    """

    difference: float
    low: float
    high: float
    p_value: float
    test: str
    rows: int
    gained: tuple[Hashable, ...] = field(default=())
    lost: tuple[Hashable, ...] = field(default=())


def estimate(measure: Measure, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """The metric with a percentile bootstrap interval over its rows; the same seed gives the same interval."""
    count = len(measure.rows)
    if measure.interval is not None:
        return Estimate(measure.value, *measure.interval, count)
    if count < 2:
        return Estimate(measure.value, None, None, count)
    low, high = _percentiles(_resampled([measure], seed, resamples)[0])
    return Estimate(measure.value, low, high, count)


def compare(baseline: Measure, target: Measure, *, seed: int, resamples: int = RESAMPLES) -> Difference | None:
    """The paired difference; None where fewer than two rows were answered by both."""
    shared = _shared_rows(baseline, target)
    if len(shared) < 2:
        return None
    before, after = baseline.only(shared), target.only(shared)
    samples = _resampled([before, after], seed, resamples)
    low, high = _percentiles(samples[1] - samples[0])
    gained: tuple[Hashable, ...] = ()
    lost: tuple[Hashable, ...] = ()
    both_binary = baseline.is_binary and target.is_binary and before.values is not None and after.values is not None
    if both_binary:
        assert before.values is not None
        assert after.values is not None
        gained = tuple(row for row, b, a in zip(shared, before.values, after.values, strict=True) if a > b)
        lost = tuple(row for row, b, a in zip(shared, before.values, after.values, strict=True) if a < b)
        test, p_value = "mcnemar", mcnemar(len(gained), len(lost))
    else:
        test, p_value = "randomization", _randomization(before, after, seed, resamples)
    return Difference(after.value - before.value, low, high, p_value, test, len(shared), gained, lost)


def mcnemar(gained: int, lost: int) -> float:
    """Exact McNemar: how likely a split of the changed rows at least as uneven is where both ways are equally likely.

    McNemar, Note on the sampling error of the difference between correlated proportions (1947); two-sided binomial.
    """
    changed = gained + lost
    if changed == 0:
        return 1.0
    logs = [
        math.lgamma(changed + 1) - math.lgamma(k + 1) - math.lgamma(changed - k + 1)
        for k in range(min(gained, lost) + 1)
    ]
    tail = sum(math.exp(value - changed * math.log(2.0)) for value in logs)
    return min(1.0, 2.0 * tail)


def sign_flip(differences: Sequence[float], *, seed: int, resamples: int = RESAMPLES) -> float:
    """Sign-flip permutation test of a mean difference of zero, two-sided; exact for few rows that differ (Fisher)."""
    numbers = np.asarray(differences, dtype=float)
    before = mean_measure("before", range(len(numbers)), np.zeros(len(numbers)))
    return _randomization(before, mean_measure("after", range(len(numbers)), numbers), seed, resamples)


def _randomization(before: Measure, after: Measure, seed: int, resamples: int) -> float:
    """Swap the two targets' answers row by row; for means this is the sign-flip test (Noreen 1989)."""
    changed = np.flatnonzero(np.any(before.stats != after.stats, axis=1))
    if len(changed) == 0:
        return 1.0
    observed = abs(after.value - before.value)
    moved = (after.stats - before.stats)[changed]
    exact = len(changed) <= _EXACT_ROWS
    if exact:
        swaps = (np.arange(2 ** len(changed))[:, None] >> np.arange(len(changed))) & 1
    else:
        swaps = np.random.default_rng([seed, 0x51]).integers(0, 2, (resamples, len(changed)))
    shift = swaps @ moved
    with np.errstate(invalid="ignore", divide="ignore"):
        first = before.finish(before.stats.sum(axis=0) + shift)
        second = after.finish(after.stats.sum(axis=0) - shift)
    hits = int((np.abs(second - first) >= observed - 1e-12 - 1e-9 * observed).sum())
    # A drawn test counts the split that was seen as one of its draws (Phipson and Smyth 2010).
    return hits / len(swaps) if exact else (hits + 1) / (resamples + 1)


def _shared_rows(first: Measure, second: Measure) -> list[Hashable]:
    there = set(second.rows)
    return [row for row in first.rows if row in there]


def _resampled(measures: Sequence[Measure], seed: int, resamples: int) -> list[np.ndarray]:
    """Each measure over the same bootstrap samples of its rows; the measures have the same rows."""
    count = len(measures[0].rows)
    source = np.random.default_rng([seed, count])
    block = max(1, min(resamples, _BLOCK // count))
    parts: list[list[np.ndarray]] = [[] for _ in measures]
    for begin in range(0, resamples, block):
        size = min(block, resamples - begin)
        weights = source.multinomial(count, np.full(count, 1.0 / count), size=size).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            for part, measure in zip(parts, measures, strict=True):
                part.append(measure.finish(weights @ measure.stats))
    return [np.concatenate(part) for part in parts]


def _percentiles(samples: np.ndarray) -> tuple[float, float]:
    finite = samples[np.isfinite(samples)]
    if len(finite) == 0:
        return math.nan, math.nan
    low, high = np.quantile(finite, (0.025, 0.975))
    return float(low), float(high)
