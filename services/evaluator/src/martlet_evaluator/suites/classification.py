"""Classification: accuracy, macro-F1 and the confusion matrix of answers that are labels.

Where the target can, it is held to the labels (``structured_outputs.choice``, vLLM's name): a model that hasn't seen the task would
otherwise be marked down for its phrasing. Where it can't, its answer is read as the label it begins with; the report says which.
A classifier (``ask: classify``) answers with its likeliest label; one that the rows never expect counts as unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from martlet_core.errors import FailedPrecondition

from martlet_evaluator.judged_rows import read_labelled
from martlet_evaluator.rows import Row
from martlet_evaluator.statistics import Measure, mean_measure
from martlet_evaluator.suite_options import ClassificationOptions
from martlet_evaluator.suites.base import Record, Suite, SuiteRun, chat, pooling
from martlet_evaluator.targets.base import Answer, Target

#: More expected answers than this are no labels.
MAX_LABELS = 200
UNREADABLE = "(none)"
_MAX_TOKENS = 64


class Classification(Suite):
    """``accuracy``, ``macro_f1`` and ``unreadable``, the share of answers that are none of the labels (they count as wrong)."""

    options: ClassificationOptions

    async def ask(self, run: SuiteRun, target: Target) -> list[Record]:
        """Ask each row and read the label."""
        if self.options.ask == "classify":
            return await self._classified(run, target)
        labels = self._labels([row.expected or "" for row in run.rows])
        length = self.options.max_tokens or min(_MAX_TOKENS, max(len(label.encode()) for label in labels) + 1)
        sampling = run.with_sampling(max_tokens=length)
        choices = labels if self.options.constrained else ()

        def score(row: Row, answer: Answer) -> Record:
            said = read_label(answer.text, labels)
            right = said == (row.expected or "").strip()
            return run.record(
                target,
                row,
                answer,
                {"accuracy": float(right)},
                {
                    "label": said or UNREADABLE,
                    "labels": list(labels),
                    "held_to_labels": bool(choices) and target.constrains,
                },
            )

        return await run.ask_rows(target, lambda row: chat(target, row, sampling, choices=choices), score)

    async def _classified(self, run: SuiteRun, target: Target) -> list[Record]:
        """Ask a classifier. Where rows give classes by number, its answer is the place of the likeliest one."""
        asked = pooling(target)
        known = {row.index: read_labelled(row.values) for row in run.rows}
        labels = self._labels([str(row.label) for row in known.values()])

        def score(row: Row, answer: Answer) -> Record:
            expected, probabilities = known[row.index].label, answer.data["probs"]
            said = str(int(np.argmax(probabilities))) if isinstance(expected, int) else answer.text.strip()
            details = {"label": said if said in labels else UNREADABLE, "labels": list(labels), "held_to_labels": True}
            right = str(expected).strip()
            record = run.record(target, row, answer, {"accuracy": float(said == right)}, details)
            return replace(record, output=said, expected=right, details={**details, "probs": probabilities})

        return await run.ask_rows(target, lambda row: asked.classify(known[row.index].text), score)

    def measure(self, records: Sequence[Record]) -> list[Measure]:
        """Accuracy, macro-F1, and what couldn't be read."""
        rows = [record.row for record in records]
        unreadable = [float(record.details["label"] == UNREADABLE) for record in records]
        return [
            mean_measure("accuracy", rows, [record.scores["accuracy"] for record in records]),
            macro_f1(
                rows, [record.expected.strip() for record in records], [record.details["label"] for record in records]
            ),
            mean_measure("unreadable", rows, unreadable, higher_is_better=False, compared=False),
        ]

    def details(self, records: Sequence[Record]) -> dict[str, Any]:
        """The confusion matrix, and whether the target was held to the labels."""
        if not records:
            return {}
        notes = []
        unread = any(record.details["label"] == UNREADABLE for record in records)
        if self.options.ask == "classify":
            notes += ["Some answers are labels that no row expects."] if unread else []
        elif self.options.constrained and not all(record.details["held_to_labels"] for record in records):
            notes.append("The endpoint doesn't take structured_outputs: its answers were free, and read as labels.")
        elif self.options.constrained and unread:
            notes.append(
                "The endpoint took structured_outputs and still gave answers that are no label: it ignores them."
            )
        return {"confusion": confusion(records), "notes": notes}

    def _labels(self, expected: Sequence[str]) -> tuple[str, ...]:
        found = {text.strip() for text in expected}
        labels = self.options.labels or tuple(sorted(found))
        strangers = found - set(labels)
        if self.options.labels and strangers:
            raise FailedPrecondition(
                f"spec.suites.options.labels: rows expect {sorted(strangers)[0]!r}, which is none of them"
            )
        if len(labels) > MAX_LABELS:
            raise FailedPrecondition(
                f"the rows expect {len(labels)} different answers, more than {MAX_LABELS}; use exact_match or generation"
            )
        return labels


def read_label(text: str, labels: Sequence[str]) -> str:
    """The label that an answer is or begins with, whatever its case; empty if there is none. The longest one counts."""
    said = text.strip()
    if said in labels:
        return said
    for label in sorted(labels, key=len, reverse=True):
        if re.match(rf"\W*{re.escape(label)}(?!\w)", said, re.IGNORECASE):
            return label
    return ""


def macro_f1(rows: Sequence[int | str], expected: Sequence[str], said: Sequence[str]) -> Measure:
    """The mean of the labels' F1; labels that neither side names don't count (as in scikit-learn)."""
    labels = sorted({*expected, *said} - {UNREADABLE})
    place = {label: index for index, label in enumerate(labels)}
    count = len(labels)
    stats = np.zeros((len(rows), 3 * count))  # true positives, what was said, what was expected
    for index, (right, answer) in enumerate(zip(expected, said, strict=True)):
        stats[index, 2 * count + place[right]] = 1
        if answer in place:
            stats[index, count + place[answer]] = 1
            stats[index, place[right]] = float(answer == right)

    def finish(sums: np.ndarray) -> np.ndarray:
        hits, answered, wanted = sums[:, :count], sums[:, count : 2 * count], sums[:, 2 * count :]
        there = answered + wanted
        f1 = np.divide(2 * hits, there, out=np.zeros_like(hits), where=there > 0)
        return f1.sum(axis=1) / np.maximum((there > 0).sum(axis=1), 1)

    return Measure("macro_f1", tuple(rows), stats, finish)


def confusion(records: Sequence[Record]) -> dict[str, Any]:
    """Counts by expected (lines) and given label (columns)."""
    labels = [str(label) for label in records[0].details["labels"]]
    columns = [*labels, UNREADABLE] if any(r.details["label"] == UNREADABLE for r in records) else labels
    counts = [[0] * len(columns) for _ in labels]
    for record in records:
        counts[labels.index(record.expected.strip())][columns.index(record.details["label"])] += 1
    return {"labels": labels, "columns": columns, "counts": counts}
