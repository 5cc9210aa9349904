"""Latency: time to the first token, time between tokens, tokens/s, at each level of concurrency.

A level is measured in one go: after an interruption it is measured anew, never put together from two halves.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from martlet_evaluator.statistics import Measure, mean_measure
from martlet_evaluator.suite_options import LatencyOptions
from martlet_evaluator.suites.base import Record, Suite, SuiteRun
from martlet_evaluator.targets.base import Answer, Messages, Target

#: Prompts where the job has no rows; of several lengths.
PROMPTS = (
    "Explain in a few sentences how a bicycle stays upright.",
    "List three things to check before a long drive, and say why.",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "What is the difference between weather and climate? Give an example of each, then sum up in one line.",
)


class Latency(Suite):
    """Per level ``cN``: ``ttft_ms``, ``inter_token_ms``, ``tokens_per_second`` (all streams together), ``ttft_ms_p95``, ``requests_per_second``."""

    options: LatencyOptions

    def questions(self, run: SuiteRun) -> int:
        """Requests of all levels."""
        return len(self.options.concurrency) * self.options.requests

    async def ask(self, run: SuiteRun, target: Target) -> list[Record]:
        """Measure each level."""
        prompts: list[Messages] = [row.messages for row in run.rows if row.messages] or [
            [{"role": "user", "content": prompt}] for prompt in PROMPTS
        ]
        records: list[Record] = []
        for level in self.options.concurrency:
            key = f"{run.key}/{target.name}/c{level}"
            measured = await run.asker.once(key, lambda level=level: self._measure_level(run, target, prompts, level))
            records += [Record(run.key, target.name, **values) for values in measured]
        for record in records:
            if record.error:
                run.asker.count_failure(f"target {target.name}, {run.key}, request {record.row}", record.error)
        return records

    def measure(self, records: Sequence[Record]) -> list[Measure]:
        """Numbers of each level."""
        measures: list[Measure] = []
        for level in self.options.concurrency:
            found = [record for record in records if record.details["level"] == level]
            if found:
                measures += _level_measures(level, found)
        return measures

    async def _measure_level(
        self, run: SuiteRun, target: Target, prompts: Sequence[Messages], level: int
    ) -> list[dict[str, Any]]:
        sampling = run.with_sampling(max_tokens=self.options.max_tokens)
        extra = {"ignore_eos": True} if self.options.ignore_eos else None

        async def one(index: int) -> Answer:
            return await target.stream(prompts[index % len(prompts)], sampling, extra=extra)

        await run.asker.over(range(self.options.warmup), one, concurrency=level)
        begun = time.monotonic()
        answers = await run.asker.over(range(self.options.requests), one, concurrency=level)
        wall = time.monotonic() - begun
        return [
            _values(level, index, prompts[index % len(prompts)], answer, wall) for index, answer in enumerate(answers)
        ]


def _values(level: int, index: int, prompt: Messages, answer: Answer, wall: float) -> dict[str, Any]:
    """A record's fields, JSON-ready."""
    error = answer.error or ("" if answer.data.get("first_token_seconds") is not None else "no token came")
    tokens = answer.completion_tokens or answer.data.get("chunks", 0)
    details = {
        "level": level,
        "wall_seconds": wall,
        "tokens": tokens,
        "prompt_tokens": answer.prompt_tokens,
        "gaps_seconds": sum(answer.data.get("gaps", ())),
        "gaps": len(answer.data.get("gaps", ())),
        "retried": answer.attempts > 1,
    }
    first = answer.data.get("first_token_seconds") or 0.0
    return {
        "row": f"c{level}/{index}",
        "input": list(prompt),
        "output": answer.text,
        "scores": {} if error else {"ttft_ms": first * 1000},
        "seconds": answer.seconds,
        "error": error,
        "details": details,
    }


def _level_measures(level: int, records: Sequence[Record]) -> list[Measure]:
    rows = [record.row for record in records]
    first = [record.scores["ttft_ms"] for record in records]
    gaps = np.array([[1000 * r.details["gaps_seconds"], r.details["gaps"]] for r in records], dtype=float)
    wall = float(records[0].details["wall_seconds"])
    tokens = sum(record.details["tokens"] for record in records)
    measures = [mean_measure(f"ttft_ms.c{level}", rows, first, higher_is_better=False, unit="ms")]
    if gaps[:, 1].sum() > 0:
        measures.append(Measure(f"inter_token_ms.c{level}", tuple(rows), gaps, higher_is_better=False, unit="ms"))
    return [
        *measures,
        _single(f"ttft_ms_p95.c{level}", float(np.quantile(first, 0.95)), "ms", higher_is_better=False),
        _single(f"tokens_per_second.c{level}", tokens / wall, "tokens/s"),
        _single(f"requests_per_second.c{level}", len(records) / wall, "requests/s"),
    ]


def _single(name: str, value: float, unit: str, *, higher_is_better: bool = True) -> Measure:
    """A number of the level as a whole: it has no interval."""
    return mean_measure(name, [name], [value], unit=unit, higher_is_better=higher_is_better, compared=False)
