"""Reward models: how often the answer that people chose scores above the one that they rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from martlet_evaluator.judged_rows import read_preference
from martlet_evaluator.rows import Row
from martlet_evaluator.statistics import Measure, mean_measure
from martlet_evaluator.suite_options import RewardOptions
from martlet_evaluator.suites.base import Record, Suite, SuiteRun, pooling
from martlet_evaluator.targets.base import Answer, Target


class Reward(Suite):
    """``accuracy``, the share of pairs in order (a tie is none), and ``margin``, the mean difference of the two scores."""

    options: RewardOptions

    async def ask(self, run: SuiteRun, target: Target) -> list[Record]:
        """Have both answers of each row scored."""
        asked = pooling(target)

        async def call(row: Row) -> Answer:
            pair = read_preference(row.values)
            chosen = await asked.classify(_turns(pair.chosen.messages), raw=True)
            if chosen.error:
                return chosen
            rejected = await asked.classify(_turns(pair.rejected.messages), raw=True)
            both = [answer.data["probs"] for answer in (chosen, rejected) if not answer.error]
            if any(len(numbers) != 1 for numbers in both):
                return Answer(error=f"the model has {len(both[0])} labels; a reward model has one")
            rewards = [number for numbers in both for number in numbers]
            seconds, attempts = chosen.seconds + rejected.seconds, max(chosen.attempts, rejected.attempts)
            return replace(rejected, data={"rewards": rewards}, seconds=seconds, attempts=attempts)

        def score(row: Row, answer: Answer) -> Record:
            chosen, rejected = answer.data["rewards"]
            values = {"accuracy": float(chosen > rejected), "margin": chosen - rejected}
            return run.record(target, row, answer, values, {"chosen": chosen, "rejected": rejected})

        return await run.ask_rows(target, call, score)

    def measure(self, records: Sequence[Record]) -> list[Measure]:
        """Share of pairs in order, and the mean margin; margins of different models have no common scale."""
        rows = [record.row for record in records]
        return [
            mean_measure("accuracy", rows, [record.scores["accuracy"] for record in records], is_binary=True),
            mean_measure(
                "margin", rows, [record.scores["margin"] for record in records], is_binary=False, compared=False
            ),
        ]


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turns as a route takes them: what only a trainer reads is left out."""
    return [
        {key: value for key, value in turn.items() if key in ("role", "content", "tool_calls")} for turn in messages
    ]
