"""Exact match: the answer is the expected one, after the changes that the options name."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from martlet_evaluator.statistics import Measure, mean_measure
from martlet_evaluator.suite_options import ExactMatchOptions
from martlet_evaluator.suites.base import Record, Suite, SuiteRun, chat
from martlet_evaluator.targets.base import Target

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactMatch(Suite):
    """``accuracy``: share of rows whose answer matches."""

    options: ExactMatchOptions

    async def ask(self, run: SuiteRun, target: Target) -> list[Record]:
        """Ask each row and compare."""
        return await run.ask_rows(
            target,
            lambda row: chat(target, row, run.sampling),
            lambda row, answer: run.record(
                target, row, answer, {"accuracy": float(matches(answer.text, row.expected or "", self.options))}
            ),
        )

    def measure(self, records: Sequence[Record]) -> list[Measure]:
        """Share of matches."""
        return [mean_measure("accuracy", [r.row for r in records], [r.scores["accuracy"] for r in records])]


def matches(text: str, expected: str, options: ExactMatchOptions) -> bool:
    """Whether an answer is the expected one."""
    if options.extract:
        found = list(re.finditer(options.extract, text))
        if not found:
            return False
        text = found[-1][1] if found[-1].re.groups else found[-1][0]
        text = text or ""
    return _normalised(text, options) == _normalised(expected, options)


def _normalised(text: str, options: ExactMatchOptions) -> str:
    if options.ignore_punctuation:
        text = text.translate(_NO_PUNCTUATION)
    if options.ignore_case:
        text = text.casefold()
    return text.strip() if options.strip else text
