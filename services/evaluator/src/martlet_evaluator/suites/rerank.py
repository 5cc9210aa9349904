"""Reranking: whether the documents that fit a query come before those that don't."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from martlet_evaluator import ranking
from martlet_evaluator.judged_rows import read_documents
from martlet_evaluator.rows import Row
from martlet_evaluator.statistics import Measure, mean_measure
from martlet_evaluator.suite_options import RerankOptions
from martlet_evaluator.suites.base import Record, Suite, SuiteRun, pooling
from martlet_evaluator.targets.base import Answer, Target


class Rerank(Suite):
    """``mrr`` and ``ndcg@k`` of each query's own documents."""

    options: RerankOptions

    async def ask(self, run: SuiteRun, target: Target) -> list[Record]:
        """Have each row's documents ordered."""
        asked = pooling(target)
        known = {row.index: read_documents(row.values) for row in run.rows}

        def call(row: Row) -> Awaitable[Answer]:
            documents = known[row.index]
            return asked.rerank(documents.anchor, [*documents.positives, *documents.negatives])

        def score(row: Row, answer: Answer) -> Record:
            scores = answer.data["scores"]
            found = ranking.ranks(scores, range(len(known[row.index].positives)))
            values = {"mrr": ranking.reciprocal_rank(found), self._ndcg: ranking.ndcg(found, self.options.k)}
            return run.record(target, row, answer, values, {"scores": scores, "ranks": found})

        return await run.ask_rows(target, call, score)

    def measure(self, records: Sequence[Record]) -> list[Measure]:
        """Means over the queries."""
        rows = [record.row for record in records]
        return [
            mean_measure(name, rows, [record.scores[name] for record in records], is_binary=False)
            for name in ("mrr", self._ndcg)
        ]

    @property
    def _ndcg(self) -> str:
        return f"ndcg@{self.options.k}"
