"""The report of an evaluation: one HTML file that stands alone, and the same numbers as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from martlet_evaluator import plots
from martlet_evaluator.comparison import Compared, Metric, Outcome, compared_values, numbers
from martlet_evaluator.config import EvaluationConfig
from martlet_evaluator.suites.base import Record

SAMPLES = 8
FLIPS = 12
_TEXT_CHARACTERS = 1200


def write_report(
    directory: Path, spec: EvaluationConfig, counts: Mapping[str, int], outcome: Outcome, records: Sequence[Record]
) -> None:
    """Write ``report.json`` and ``report.html``."""
    directory.mkdir(parents=True, exist_ok=True)
    values = report_values(spec, counts, outcome)
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    (directory / "report.json").write_text(text + "\n", encoding="utf-8")
    (directory / "report.html").write_text(render(spec, counts, outcome, records), encoding="utf-8")


def report_values(spec: EvaluationConfig, counts: Mapping[str, int], outcome: Outcome) -> dict[str, Any]:
    """The report as JSON-ready values."""
    return {
        "spec": spec.model_dump(mode="json"),
        **counts,
        "baseline": outcome.baseline,
        "targets": {
            name: {
                metric.name: {
                    **numbers(metric.estimate),
                    "rows": metric.estimate.rows,
                    "unit": metric.unit,
                    "higher_is_better": metric.higher_is_better,
                }
                for metric in found
            }
            for name, found in outcome.metrics.items()
        },
        "comparisons": [
            {
                **_finite(compared_values(found)),
                "test": found.difference.test,
                "rows": found.difference.rows,
                "gained_rows": list(found.difference.gained),
                "lost_rows": list(found.difference.lost),
            }
            for found in outcome.comparisons
        ],
        "categories": list(outcome.categories),
        "categories_left_out": list(outcome.more_categories),
        "details": outcome.details,
        "failed_rows": outcome.failed,
    }


def render(spec: EvaluationConfig, counts: Mapping[str, int], outcome: Outcome, records: Sequence[Record]) -> str:
    """The page. Everything that models and users wrote is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("martlet_evaluator", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": plots.number, "signed": plots.signed, "p_value": p_value, "percent": _percent}
    suites = list(dict.fromkeys(metric.suite for found in outcome.metrics.values() for metric in found))
    return environment.get_template("report.html.j2").render(
        spec=spec,
        counts=counts,
        outcome=outcome,
        targets=list(outcome.metrics),
        suites=[_suite_section(suite, outcome, records) for suite in suites],
    )


def _suite_section(suite: str, outcome: Outcome, records: Sequence[Record]) -> dict[str, Any]:
    own = [record for record in records if record.suite == suite]
    names = list(dict.fromkeys(m.name for found in outcome.metrics.values() for m in found if m.suite == suite))
    by_target = {target: {m.name: m for m in found} for target, found in outcome.metrics.items()}
    compared = [found for found in outcome.comparisons if found.metric.suite == suite]
    details = outcome.details.get(suite, {})
    return {
        "key": suite,
        "metrics": [
            {
                "name": name.removeprefix(f"{suite}."),
                "meta": next(by_target[t][name] for t in by_target if name in by_target[t]),
                "cells": [_cell(by_target[target].get(name)) for target in by_target],
            }
            for name in names
        ],
        "plots": _plots(names, by_target),
        "comparisons": compared,
        "difference_plots": _difference_plots(compared),
        "categories": _category_table(suite, outcome),
        "confusions": [(t, d["confusion"]) for t, d in details.items() if d.get("confusion")],
        "notes": _notes(details),
        "flips": _flips(compared, own),
        "failures": [_sample(record) for record in own if record.error][:SAMPLES],
        "failed": sum(bool(record.error) for record in own),
        "samples": _samples(own, list(by_target)),
    }


def _cell(metric: Metric | None) -> Metric | None:
    return metric if metric is not None and math.isfinite(metric.estimate.value) else None


def _plots(names: Sequence[str], by_target: Mapping[str, Mapping[str, Metric]]) -> list[tuple[str, Markup]]:
    found = []
    for name in names:
        lines = [
            (target, shade, m.estimate.value, _real(m.estimate.low), _real(m.estimate.high))
            for shade, (target, metrics) in enumerate(by_target.items())
            if (m := _cell(metrics.get(name))) is not None and m.estimate.low is not None
        ]
        if lines:
            unit = next(metrics[name].unit for metrics in by_target.values() if name in metrics)
            found.append((name.partition(".")[2], Markup(plots.dot_plot(lines, unit))))
    return found


def _difference_plots(compared: Sequence[Compared]) -> list[tuple[str, Markup]]:
    """One for each metric: metrics have scales of their own."""
    by_metric: dict[str, list[tuple[str, float, float, float]]] = {}
    for found in compared:
        d = found.difference
        if all(math.isfinite(v) for v in (d.difference, d.low, d.high)):
            by_metric.setdefault(found.metric.name.partition(".")[2], []).append(
                (found.target, d.difference, d.low, d.high)
            )
    return [(name, Markup(plots.difference_plot(lines))) for name, lines in by_metric.items()]


def _category_table(suite: str, outcome: Outcome) -> dict[str, Any] | None:
    lines = [line for line in outcome.categories if line["suite"] == suite]
    if not lines:
        return None
    names = list(dict.fromkeys(name for line in lines for name in line["metrics"]))
    shown = [name for name in names if all(name in line["metrics"] for line in lines)][:4] or names[:4]
    return {"metrics": [(name, name.partition(".")[2]) for name in shown], "lines": lines}


def _notes(details: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Notes by text: what holds for all targets is said once."""
    by_note: dict[str, list[str]] = {}
    for target, found in details.items():
        for note in found.get("notes", ()):
            by_note.setdefault(note, []).append(target)
    return list(by_note.items())


def _flips(compared: Sequence[Compared], records: Sequence[Record]) -> list[dict[str, Any]]:
    by_row = {(record.target, record.row): record for record in records}
    shown = []
    seen = set()
    for found in compared:
        for kind, rows in (("gained", found.difference.gained), ("lost", found.difference.lost)):
            for row in rows[: FLIPS // 2]:
                after, before = by_row.get((found.target, row)), by_row.get((found.baseline, row))  # type: ignore[arg-type]
                if after is not None and before is not None and (found.target, row) not in seen:
                    seen.add((found.target, row))
                    shown.append(
                        {"kind": kind, "target": found.target, "after": _sample(after), "before": _sample(before)}
                    )
    return shown


def _samples(records: Sequence[Record], targets: Sequence[str]) -> list[dict[str, Any]]:
    rows = list(dict.fromkeys(record.row for record in records if not record.error))
    step = max(1, len(rows) // SAMPLES)
    by_row = {(record.target, record.row): record for record in records}
    chosen = []
    for row in rows[::step][:SAMPLES]:
        found = [by_row[target, row] for target in targets if (target, row) in by_row]
        chosen.append(
            {
                "row": row,
                "input": _input(found[0]),
                "expected": _cut(found[0].expected),
                "answers": [_sample(r) for r in found],
            }
        )
    return chosen


def _sample(record: Record) -> dict[str, Any]:
    return {
        "target": record.target,
        "row": record.row,
        "input": _input(record),
        "output": _cut(record.output),
        "expected": _cut(record.expected),
        "scores": dict(record.scores.items()),
        "error": record.error,
    }


def _input(record: Record) -> list[tuple[str, str]]:
    """The conversation as (who, what)."""
    if isinstance(record.input, list):
        return [(str(turn.get("role", "")), _cut(str(turn.get("content", "")))) for turn in record.input]
    text = record.input if isinstance(record.input, str) else json.dumps(record.input, ensure_ascii=False)
    return [("", _cut(text))]


def _cut(text: str) -> str:
    return (
        text
        if len(text) <= _TEXT_CHARACTERS
        else f"{text[:_TEXT_CHARACTERS]} … ({len(text) - _TEXT_CHARACTERS} more characters)"
    )


def p_value(value: float) -> str:
    """A probability for people."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else ""


def _real(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: (None if isinstance(v, float) and not math.isfinite(v) else v) for name, v in values.items()}
