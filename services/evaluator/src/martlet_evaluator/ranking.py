"""How well an order puts what is relevant first: reciprocal rank, recall and nDCG, of one query.

Jarvelin and Kekalainen, Cumulated gain-based evaluation of IR techniques (2002), with relevant (1) and not (0). What scores alike is
ordered against the model: one that says the same of everything must not look perfect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def ranks(scores: Sequence[float] | np.ndarray, relevant: Sequence[int]) -> list[int]:
    """Ranks, counted from 1 and rising, of the relevant documents.

    Args:
        scores: of all documents (documents,).
        relevant: places of those that are relevant, each once.
    """
    values = np.asarray(scores, dtype=float)
    others = np.delete(values, list(relevant))
    best_first = sorted((float(values[place]) for place in relevant), reverse=True)
    return [index + 1 + int((others >= score).sum()) for index, score in enumerate(best_first)]


def reciprocal_rank(found: Sequence[int]) -> float:
    """One by the rank of the first relevant document."""
    return 1.0 / found[0]


def recall(found: Sequence[int], k: int) -> float:
    """Share of the relevant documents that are among the first ``k``."""
    return sum(rank <= k for rank in found) / len(found)


def ndcg(found: Sequence[int], k: int) -> float:
    """Discounted gain of the first ``k``, by that of the best order."""
    gain = sum(1.0 / math.log2(rank + 1) for rank in found if rank <= k)
    best = sum(1.0 / math.log2(rank + 1) for rank in range(1, min(k, len(found)) + 1))
    return gain / best
