"""What a suite is: it asks a target about the rows, and says what the records add up to."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from martlet_evaluator.asking import Asker
from martlet_evaluator.rows import Row
from martlet_evaluator.statistics import Measure
from martlet_evaluator.targets.base import Answer, PoolingTarget, Sampling, Target


@dataclass(frozen=True)
class Record:
    """One row of one target in one suite.

    Attributes:
        suite: the suite's key in the job.
        target: the target's name.
        row: what the record is about, the same for all targets.
        category: of the row; empty without one.
        input: what was asked.
        output: what came.
        expected: what should have come; empty where nothing is expected.
        scores: numbers by metric.
        seconds: that the answer took.
        error: why there is no score; empty where there is one.
        details: what else is to be seen.
        fields: that records of this suite have beside.
    """

    suite: str
    target: str
    row: int | str
    input: Any
    output: str = ""
    expected: str = ""
    category: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The first of the scores."""
        return next(iter(self.scores.values()), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "suite": self.suite,
            "target": self.target,
            "row": self.row,
            "category": self.category,
            "input": self.input,
            "output": self.output,
            "expected": self.expected,
            "score": self.score,
            "scores": dict(self.scores),
            "seconds": round(self.seconds, 6),
            "error": self.error,
            "details": dict(self.details),
            **self.fields,
        }


@dataclass(frozen=True)
class SuiteRun:
    """What a suite works with.

    Attributes:
        key: its name in the job.
        rows: the job's rows; empty without a data set.
        asker: asks, keeps and counts.
        sampling: how answers are drawn.
        seed: the job's.
        baseline: name of the target that others are compared with.
        open_model: a target for a model behind the gateway (a judge).
        inputs: the job's input directories by name, and others that the operator gave.
    """

    key: str
    rows: Sequence[Row]
    asker: Asker
    sampling: Sampling
    seed: int
    baseline: str
    open_model: Callable[[str], Target]
    inputs: Mapping[str, Path] = field(default_factory=dict)

    async def ask_rows(
        self,
        target: Target,
        call: Callable[[Row], Awaitable[Answer]],
        score: Callable[[Row, Answer], Record],
        *,
        rows: Sequence[Row] | None = None,
        phase: str = "answer",
    ) -> list[Record]:
        """Ask the target about each row and score what comes; rows without an answer are records with an error."""

        async def one(row: Row) -> Record:
            answer = await self.asker.ask(f"{self.key}/{target.name}/{phase}/{row.index}", lambda: call(row))
            if answer.error:
                self.asker.count_failure(f"target {target.name}, {self.key}, line {row.line}", answer.error)
                return self.record(target, row, answer)
            return score(row, answer)

        chosen = self.rows if rows is None else rows
        return await self.asker.over(chosen, one)

    def record(
        self,
        target: Target,
        row: Row,
        answer: Answer,
        scores: Mapping[str, float] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> Record:
        """A record of a row and the answer to it."""
        return Record(
            suite=self.key,
            target=target.name,
            row=row.index,
            input=list(row.messages) if row.messages else dict(row.values),
            output=answer.text,
            expected=row.expected or "",
            category=row.category,
            scores=scores or {},
            seconds=answer.seconds,
            error=answer.error,
            details={**(details or {}), **({"attempts": answer.attempts} if answer.attempts > 1 else {})},
        )

    def with_sampling(self, **changes: Any) -> Sampling:
        """The job's sampling with some of its values changed."""
        return replace(self.sampling, **changes)


class Suite:
    """One way to measure. ``ask`` is called target by target; ``review`` once, when all have answered.

    Args:
        options: typed, see ``suite_options``.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    def questions(self, run: SuiteRun) -> int:
        """How many questions a target is asked, for the progress."""
        return len(run.rows)

    async def ask(self, run: SuiteRun, target: Target) -> list[Record]:
        """One target's records."""
        raise NotImplementedError

    async def review(self, run: SuiteRun, records: Mapping[str, Sequence[Record]]) -> Mapping[str, Sequence[Record]]:
        """All targets' records by target, once more."""
        return records

    def measure(self, records: Sequence[Record]) -> list[Measure]:
        """What one target's records add up to; those with errors are left out by the caller."""
        raise NotImplementedError

    def details(self, records: Sequence[Record]) -> dict[str, Any]:
        """What belongs into the report beside the metrics, JSON-ready: ``confusion``, ``notes``."""
        return {}


def pooling(target: Target) -> PoolingTarget:
    """The target as one that doesn't generate. Submission has refused all others: see ``SuiteOptions.route``."""
    assert isinstance(target, PoolingTarget)
    return target


def chat(target: Target, row: Row, sampling: Sampling, **more: Any) -> Awaitable[Answer]:
    """Ask for the turn that a row expects."""
    return target.chat(row.messages, sampling, tools=row.tools, **more)


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Records as JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record.to_dict(), ensure_ascii=False) + "\n")
    os.replace(partial, path)
