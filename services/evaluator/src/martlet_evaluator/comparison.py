"""What the records say: each target's metrics, each target beside the baseline on the same rows, by category, and what flipped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from martlet_evaluator.statistics import Difference, Estimate, Measure, compare, estimate
from martlet_evaluator.suites.base import Record, Suite

#: Categories in tables; further ones are named, not shown.
MAX_CATEGORIES = 50


@dataclass(frozen=True)
class Metric:
    """A metric of a target.

    Attributes:
        name: ``suite.metric``.
        suite: the suite's key.
        estimate: value and interval.
        higher_is_better: the direction of good.
        unit: for people.
    """

    name: str
    suite: str
    estimate: Estimate
    higher_is_better: bool
    unit: str


@dataclass(frozen=True)
class Compared:
    """A target beside the baseline in one metric."""

    target: str
    baseline: str
    metric: Metric
    difference: Difference


@dataclass(frozen=True)
class Outcome:
    """Everything measured.

    Attributes:
        baseline: its name.
        metrics: by target.
        comparisons: of each other target with the baseline.
        categories: rows of the tables: ``{"suite", "category", "target", "rows", "metrics": {name: {value, low, high}}}``.
        more_categories: names that the tables leave out.
        details: what suites say beside, by suite and target.
        failed: rows without an answer, by suite and target.
    """

    baseline: str
    metrics: Mapping[str, Sequence[Metric]]
    comparisons: Sequence[Compared]
    categories: Sequence[Mapping[str, Any]]
    more_categories: Sequence[str]
    details: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, Mapping[str, int]]

    def result(self, models: Mapping[str, str]) -> dict[str, Any]:
        """``targets`` and ``comparisons`` as the contract has them; numbers that don't exist are left out."""
        targets = [
            {
                "name": name,
                "model": models[name],
                "metrics": {m.name: numbers(m.estimate) for m in found if _is_number(m)},
            }
            for name, found in self.metrics.items()
        ]
        comparisons = [compared_values(c) for c in self.comparisons if math.isfinite(c.difference.difference)]
        return {"targets": targets, "comparisons": comparisons}


def compute(
    suites: Mapping[str, Suite],
    records: Mapping[str, Mapping[str, Sequence[Record]]],
    targets: Sequence[str],
    baseline: str,
    seed: int,
) -> Outcome:
    """Measure and compare.

    Args:
        suites: by key.
        records: by suite and target.
        targets: names in the job's order.
        baseline: name of the one that the others are compared with.
        seed: of intervals and tests.
    """
    metrics: dict[str, list[Metric]] = {name: [] for name in targets}
    comparisons: list[Compared] = []
    categories: list[Mapping[str, Any]] = []
    more: set[str] = set()
    for key, suite in suites.items():
        measured = {name: suite.measure(_good(records[key][name])) for name in targets}
        for name in targets:
            metrics[name] += [_metric(key, measure, seed) for measure in measured[name]]
            metrics[name].append(_failed_rows(key, records[key][name]))
        comparisons += _comparisons(key, measured, targets, baseline, seed)
        found, left = _categories(key, suite, records[key], targets, seed)
        categories += found
        more |= set(left)
    return Outcome(
        baseline=baseline,
        metrics=metrics,
        comparisons=comparisons,
        categories=categories,
        more_categories=sorted(more),
        details={k: {name: s.details(_good(records[k][name])) for name in targets} for k, s in suites.items()},
        failed={k: {name: sum(bool(r.error) for r in records[k][name]) for name in targets} for k in suites},
    )


def numbers(found: Estimate) -> dict[str, float]:
    """``value``, and ``low`` and ``high`` where there are any; JSON has no NaN."""
    values = {"value": found.value, "low": found.low, "high": found.high}
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def compared_values(found: Compared) -> dict[str, Any]:
    """A comparison as the contract has it."""
    difference = found.difference
    return {
        "target": found.target,
        "baseline": found.baseline,
        "metric": found.metric.name,
        "difference": difference.difference,
        "low": difference.low,
        "high": difference.high,
        "p_value": difference.p_value,
        "flips_gained": len(difference.gained),
        "flips_lost": len(difference.lost),
    }


def _good(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if not record.error]


def _is_number(metric: Metric) -> bool:
    return math.isfinite(metric.estimate.value)


def _metric(key: str, measure: Measure, seed: int) -> Metric:
    return Metric(f"{key}.{measure.name}", key, estimate(measure, seed=seed), measure.higher_is_better, measure.unit)


def _failed_rows(key: str, records: Sequence[Record]) -> Metric:
    failed = float(sum(bool(record.error) for record in records))
    return Metric(f"{key}.failed_rows", key, Estimate(failed, None, None, len(records)), False, "rows")


def _comparisons(
    key: str, measured: Mapping[str, Sequence[Measure]], targets: Sequence[str], baseline: str, seed: int
) -> list[Compared]:
    before = {measure.name: measure for measure in measured[baseline] if measure.compared}
    found = []
    for name in targets:
        for measure in measured[name] if name != baseline else ():
            if measure.compared and measure.name in before:
                difference = compare(before[measure.name], measure, seed=seed)
                if difference is not None:
                    found.append(Compared(name, baseline, _metric(key, measure, seed), difference))
    return found


def _categories(
    key: str, suite: Suite, records: Mapping[str, Sequence[Record]], targets: Sequence[str], seed: int
) -> tuple[list[Mapping[str, Any]], list[str]]:
    names = sorted({record.category for found in records.values() for record in found if record.category})
    lines: list[Mapping[str, Any]] = []
    for category in names[:MAX_CATEGORIES]:
        for target in targets:
            chosen = [record for record in _good(records[target]) if record.category == category]
            if chosen:
                found = [_metric(key, measure, seed) for measure in suite.measure(chosen)]
                values = {metric.name: numbers(metric.estimate) for metric in found}
                lines.append(
                    {"suite": key, "category": category, "target": target, "rows": len(chosen), "metrics": values}
                )
    return lines, names[MAX_CATEGORIES:]
