"""Perplexity of the expected answers: how surprised a model is by them. Bits per byte don't depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from martlet_evaluator.rows import Row
from martlet_evaluator.statistics import Measure
from martlet_evaluator.suite_options import PerplexityOptions
from martlet_evaluator.suites.base import Record, Suite, SuiteRun
from martlet_evaluator.targets.base import Answer, Target


class Perplexity(Suite):
    """``perplexity`` (over all tokens of the answers), ``bits_per_byte``; the end of the turn isn't counted."""

    options: PerplexityOptions

    async def ask(self, run: SuiteRun, target: Target) -> list[Record]:
        """Have each expected answer scored."""
        is_chat = self.options.context == "chat"

        def score(row: Row, answer: Answer) -> Record:
            logprobs = answer.data["logprobs"]
            nats = -sum(logprobs)
            details = {"nats": nats, "tokens": len(logprobs), "bytes": len((row.expected or "").encode())}
            return run.record(target, row, answer, {"perplexity": math.exp(min(700.0, nats / len(logprobs)))}, details)

        def call(row: Row) -> Any:
            expected = row.expected or ""
            return (
                target.score_answer(row.messages, expected, row.tools) if is_chat else target.score_text("", expected)
            )

        return await run.ask_rows(target, call, score)

    def measure(self, records: Sequence[Record]) -> list[Measure]:
        """Sums of nats over sums of tokens and bytes."""
        rows = tuple(record.row for record in records)
        sums = [[record.details[name] for name in ("nats", "tokens", "bytes")] for record in records]
        stats = np.array(sums, dtype=float).reshape(-1, 3)
        return [
            Measure("perplexity", rows, stats, lambda s: np.exp(s[:, 0] / s[:, 1]), higher_is_better=False),
            Measure(
                "bits_per_byte",
                rows,
                stats,
                lambda s: s[:, 0] / s[:, 2] / math.log(2),
                higher_is_better=False,
                unit="bits",
            ),
        ]

    def details(self, records: Sequence[Record]) -> dict[str, Any]:
        """How much was scored."""
        tokens = sum(record.details["tokens"] for record in records)
        return {"notes": [f"{tokens} tokens of {len(records)} expected answers."]}
