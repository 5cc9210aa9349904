"""Judge: a model behind the gateway scores answers by a rubric, or says which of two is better.

Judges prefer what they read first (Zheng et al. 2023, Judging LLM-as-a-Judge): each pair is shown in both orders. A win counts
only if both orders agree; where the verdict moves with the order it is a tie, and the share of such rows is reported.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from martlet_evaluator.rows import Row
from martlet_evaluator.statistics import Measure, mean_measure
from martlet_evaluator.suite_options import JudgeOptions
from martlet_evaluator.suites.base import Record, Suite, SuiteRun, chat
from martlet_evaluator.targets.base import Answer, Sampling, Target

FIRST, SECOND, TIE = "1", "2", "tie"
_SYSTEM = (
    "You judge answers of an assistant. Be strict and impartial. The length of an answer and its place are no merits."
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class Judge(Suite):
    """``score`` by the rubric; ``win_rate`` against the baseline (ties count half), ``order_changed_verdict``, ``first_preferred``."""

    options: JudgeOptions

    async def ask(self, run: SuiteRun, target: Target) -> list[Record]:
        """Collect the answers; they are judged when all targets have given theirs."""
        return await run.ask_rows(
            target,
            lambda row: chat(target, row, run.sampling),
            lambda row, answer: run.record(target, row, answer),
        )

    async def review(self, run: SuiteRun, records: Mapping[str, Sequence[Record]]) -> Mapping[str, Sequence[Record]]:
        """Have the answers judged."""
        judge = run.open_model(self.options.model)
        try:
            return {name: await self._judge_target(run, judge, records, name) for name in records}
        finally:
            await judge.close()

    def measure(self, records: Sequence[Record]) -> list[Measure]:
        """Means over the judged rows."""
        measures = []
        for name, compared in (
            ("score", True),
            ("win_rate", False),
            ("order_changed_verdict", False),
            ("first_preferred", False),
        ):
            judged = [record for record in records if name in record.scores]
            if judged:
                higher = name in ("score", "win_rate")
                values = [record.scores[name] for record in judged]
                measures.append(
                    mean_measure(name, [r.row for r in judged], values, higher_is_better=higher, compared=compared)
                )
        return measures

    def details(self, records: Sequence[Record]) -> dict[str, Any]:
        """Who judged, and wins, ties, losses."""
        notes = [f"Judge: {self.options.model}. Rubric: {self.options.rubric}"]
        wins = [record.scores["win_rate"] for record in records if "win_rate" in record.scores]
        if wins:
            counts = f"{wins.count(1.0)} wins, {wins.count(0.5)} ties, {wins.count(0.0)} losses against the baseline"
            notes.append("first_preferred: share of verdicts for the answer shown first; 0.5 is no preference.")
            moved = sum(record.scores["order_changed_verdict"] for record in records if "win_rate" in record.scores)
            notes.append(
                f"{counts}; the verdict moved with the order in {moved:.0f} of {len(wins)} rows (counted as ties)."
            )
        return {"notes": notes}

    async def _judge_target(
        self, run: SuiteRun, judge: Target, records: Mapping[str, Sequence[Record]], name: str
    ) -> list[Record]:
        by_row = {row.index: row for row in run.rows}
        others = {record.row: record for record in records[run.baseline]}
        pairwise = self.options.mode in ("pairwise", "both") and name != run.baseline
        answered = [record for record in records[name] if not record.error]
        run.asker.plan(len(answered) * ((self.options.mode != "pairwise") + 2 * pairwise))

        async def one(record: Record) -> Record:
            if record.error:
                return record
            row = by_row[int(record.row)]
            other = others.get(record.row)
            if self.options.mode != "pairwise":
                record = await self._score(run, judge, row, record)
            if pairwise and other is not None and not other.error and not record.error:
                record = await self._pair(run, judge, row, record, other)
            if record.error:
                run.asker.count_failure(f"judging {name}, {run.key}, line {row.line}", record.error)
            return record

        return await run.asker.over(records[name], one)

    async def _score(self, run: SuiteRun, judge: Target, row: Row, record: Record) -> Record:
        low, high = self.options.min_score, self.options.max_score
        task = (
            f"{self.options.rubric}\n\n{self._question(row)}\n\n[Answer]\n{record.output}\n\n"
            f"Give a score from {low} (worst) to {high} (best). Answer with the number and nothing else."
        )
        choices = [str(value) for value in range(low, high + 1)]
        answer = await self._ask(run, judge, f"{record.target}/score/{row.index}", task, choices)
        if answer.error:
            return replace(record, error=f"judge: {answer.error}")
        match = _NUMBER.search(answer.text)
        if match is None or not low <= float(match[0]) <= high:
            return replace(record, error=f"judge: no score from {low} to {high} in {answer.text[:80]!r}")
        return replace(record, scores={**record.scores, "score": float(match[0])})

    async def _pair(self, run: SuiteRun, judge: Target, row: Row, record: Record, other: Record) -> Record:
        async def verdict(order: str, first: str, second: str) -> Answer:
            task = (
                f"{self.options.rubric}\n\n{self._question(row)}\n\n[Answer 1]\n{first}\n\n[Answer 2]\n{second}\n\n"
                f"Which answer is better? Say {FIRST}, {SECOND} or {TIE}, and nothing else."
            )
            return await self._ask(run, judge, f"{record.target}/{order}/{row.index}", task, [FIRST, SECOND, TIE])

        there, back = await asyncio.gather(
            verdict("forward", record.output, other.output), verdict("backward", other.output, record.output)
        )
        for answer in (there, back):
            if answer.error or read_verdict(answer.text) is None:
                return replace(record, error=f"judge: {answer.error or f'no verdict in {answer.text[:80]!r}'}")
        outcome = pair_outcome(read_verdict(there.text) or TIE, read_verdict(back.text) or TIE)
        details = {
            **record.details,
            "baseline_answer": other.output,
            "verdicts": [there.text.strip(), back.text.strip()],
        }
        return replace(record, scores={**record.scores, **outcome}, details=details)

    def _question(self, row: Row) -> str:
        turns = "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in row.messages)
        reference = f"\n\n[Reference answer]\n{row.expected}" if self.options.use_reference and row.expected else ""
        return f"[Conversation]\n{turns}{reference}"

    async def _ask(self, run: SuiteRun, judge: Target, key: str, task: str, choices: Sequence[str]) -> Answer:
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": task}]
        sampling = Sampling(max_tokens=self.options.max_tokens, temperature=0.0, seed=run.seed)
        return await run.asker.ask(f"{run.key}/judge/{key}", lambda: judge.chat(messages, sampling, choices=choices))


def read_verdict(text: str) -> str | None:
    """``1``, ``2`` or ``tie``; None if the text begins with none of them."""
    match = re.match(r"\W*(?:answer\s*)?(1|2|tie)\b", text.strip(), re.IGNORECASE)
    return match[1].lower() if match else None


def pair_outcome(forward: str, backward: str) -> dict[str, float]:
    """Scores from the verdicts on (target, baseline) and on (baseline, target)."""
    agreed = {(FIRST, SECOND): 1.0, (SECOND, FIRST): 0.0}.get((forward, backward), 0.5)
    consistent = (forward, backward) in ((FIRST, SECOND), (SECOND, FIRST), (TIE, TIE))
    named = [verdict for verdict in (forward, backward) if verdict != TIE]
    outcome = {"win_rate": agreed, "order_changed_verdict": float(not consistent)}
    if named:
        outcome["first_preferred"] = named.count(FIRST) / len(named)
    return outcome
