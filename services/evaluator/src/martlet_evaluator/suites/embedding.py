"""Embeddings: whether texts that belong together are near one another, by the cosine of their vectors.

Retrieval: each row's text looks for its positives among the positives and negatives of all rows. Similarity: cosines beside the rows'
own numbers, as the STS tasks have it (Cer et al. 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from martlet_core.errors import FailedPrecondition
from martlet_inputs.rows.ranking import Ranking

from martlet_evaluator import ranking
from martlet_evaluator.judged_rows import read_ranking, read_scored
from martlet_evaluator.statistics import Measure, mean_measure
from martlet_evaluator.suite_options import EmbeddingOptions
from martlet_evaluator.suites.base import Record, Suite, SuiteRun, pooling
from martlet_evaluator.targets.base import Answer, Target


class Embedding(Suite):
    """``recall@1``, ``recall@k``, ``mrr`` and ``ndcg@k``; or ``spearman``."""

    options: EmbeddingOptions

    def questions(self, run: SuiteRun) -> int:
        """A request a batch."""
        return len(self._batches(_texts(self._read(run))))

    async def ask(self, run: SuiteRun, target: Target) -> list[Record]:
        """Have all texts embedded, each once, and compare them."""
        rows = self._read(run)
        vectors = await self._embedded(run, target, _texts(rows))
        score = self._similarity if self.options.measure == "similarity" else self._retrieval(rows, vectors)
        return [
            run.record(target, row, Answer(), score(rows[row.index], vectors), {"texts": len(vectors)})
            for row in run.rows
        ]

    def measure(self, records: Sequence[Record]) -> list[Measure]:
        """Means over the rows, or the correlation of all."""
        rows = [record.row for record in records]
        if self.options.measure == "similarity":
            return [spearman(rows, *([record.scores[name] for record in records] for name in ("cosine", "score")))]
        return [
            mean_measure(name, rows, [record.scores[name] for record in records], is_binary=False)
            for name in self._metrics
        ]

    def details(self, records: Sequence[Record]) -> dict[str, Any]:
        """Among how many texts was looked."""
        return {"notes": [f"{records[0].details['texts']} different texts were embedded."]} if records else {}

    @property
    def _metrics(self) -> Sequence[str]:
        k = self.options.k
        return tuple(dict.fromkeys(("recall@1", f"recall@{k}", "mrr", f"ndcg@{k}")))

    def _read(self, run: SuiteRun) -> Mapping[int, Ranking]:
        read = read_scored if self.options.measure == "similarity" else read_ranking
        return {row.index: read(row.values) for row in run.rows}

    def _batches(self, texts: Sequence[str]) -> list[Sequence[str]]:
        size = self.options.batch_size
        return [texts[begin : begin + size] for begin in range(0, len(texts), size)]

    async def _embedded(self, run: SuiteRun, target: Target, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Vectors of length 1 by text.

        Raises:
            FailedPrecondition: a batch got none. Without its texts every row would be measured on something else.
        """
        asked = pooling(target)

        async def one(place: int) -> np.ndarray:
            answer = await run.asker.ask(f"{run.key}/{target.name}/embed/{place}", lambda: asked.embed(batches[place]))
            if answer.error:
                raise FailedPrecondition(
                    f"target {target.name}, {run.key}: {len(batches[place])} texts got no vectors, and each row is compared with all "
                    f"of them: {answer.error}",
                    reason="TOO_MANY_FAILED_ROWS",
                )
            found = np.asarray(answer.data["vectors"], dtype=np.float64)
            return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

        batches = self._batches(texts)
        found = await run.asker.over(range(len(batches)), one)
        return dict(zip(texts, np.concatenate(found), strict=True))

    def _similarity(self, row: Ranking, vectors: Mapping[str, np.ndarray]) -> dict[str, float]:
        assert row.score is not None
        return {"cosine": float(vectors[row.anchor] @ vectors[row.positives[0]]), "score": row.score}

    def _retrieval(self, rows: Mapping[int, Ranking], vectors: Mapping[str, np.ndarray]) -> Any:
        corpus = list(dict.fromkeys(text for row in rows.values() for text in (*row.positives, *row.negatives)))
        places = {text: place for place, text in enumerate(corpus)}
        matrix = np.stack([vectors[text] for text in corpus])
        k = self.options.k

        def score(row: Ranking, _: Mapping[str, np.ndarray]) -> dict[str, float]:
            scores = matrix @ vectors[row.anchor]
            if row.anchor in places and row.anchor not in row.positives:
                scores[places[row.anchor]] = -np.inf  # it isn't to find itself
            found = ranking.ranks(scores, [places[text] for text in row.positives])
            values = {"recall@1": ranking.recall(found, 1), f"recall@{k}": ranking.recall(found, k)}
            return values | {"mrr": ranking.reciprocal_rank(found), f"ndcg@{k}": ranking.ndcg(found, k)}

        return score


def spearman(rows: Sequence[int | str], first: Sequence[float], second: Sequence[float]) -> Measure:
    """Spearman's rank correlation: Pearson's of the ranks, ties sharing theirs.

    Ranks are those among all rows, also where rows are drawn for intervals and tests: so it is a function of sums.
    """
    x, y = _ranks(first), _ranks(second)
    stats = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)

    def finish(sums: np.ndarray) -> np.ndarray:
        n, sx, sy, sxx, syy, sxy = sums.T
        return (n * sxy - sx * sy) / np.sqrt((n * sxx - sx * sx) * (n * syy - sy * sy))

    return Measure("spearman", tuple(rows), stats, finish)


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from the middle, so that sums stay small; equal values have the mean of theirs."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means = last - (counts - 1) / 2
    return means[inverse] - (len(values) + 1) / 2


def _texts(rows: Mapping[int, Ranking]) -> list[str]:
    """All texts of the rows, each once."""
    texts = (text for row in rows.values() for text in (row.anchor, *row.positives, *row.negatives))
    return list(dict.fromkeys(texts))
