"""Numbers of a whole validation that are no means over its examples: F1, rank correlation, entities found.

By their usual definitions (scikit-learn's, scipy's and seqeval's words for them are used); a test holds each against one worked out by hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: An entity: its type, its first word and the one behind its last.
Entity = tuple[str, int, int]


def f1(true_positives: float, predicted: float, actual: float) -> float:
    """Harmonic mean of precision and recall; 0.0 where nothing was to be found, or nothing was found."""
    return 2.0 * true_positives / (predicted + actual) if predicted + actual else 0.0


def macro_f1(chosen: np.ndarray, actual: np.ndarray) -> float:
    """Mean F1 over the classes that are there, or were predicted.

    Args:
        chosen: classes that were predicted, one-hot or many-hot. Shape (examples, classes), bool.
        actual: what they are, alike.
    """
    hits, predicted, there = (chosen & actual).sum(0), chosen.sum(0), actual.sum(0)
    rows = zip(hits, predicted, there, strict=True)
    values = [f1(hit, found, known) for hit, found, known in rows if found or known]
    return float(np.mean(values)) if values else 0.0


def micro_f1(chosen: np.ndarray, actual: np.ndarray) -> float:
    """F1 of all classes as one; arguments as of ``macro_f1``."""
    return f1(float((chosen & actual).sum()), float(chosen.sum()), float(actual.sum()))


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation; 0.0 where one side is constant. Shapes (examples,)."""
    ranks = np.stack([_ranks(one), _ranks(other)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(ranks, axis=1)
    return float(ranks[0] @ ranks[1] / norms.prod()) if norms.all() else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2.0)[places]


def entities(tags: Sequence[str]) -> set[Entity]:
    """Entities of a row's tags in IOB2, or of its IOB1 and plain runs, as seqeval's default mode has them: a run of one type, which a ``B-``
    begins anew. Tags other than ``O`` without ``B-`` or ``I-`` are types themselves."""
    found: set[Entity] = set()
    kind, start = "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, rest = tag.partition("-") if tag[:2] in ("B-", "I-") else ("", "", "" if tag == "O" else tag)
        if rest != kind or prefix == "B":
            if kind:
                found.add((kind, start, place))
            kind, start = rest, place
    return found


def entity_scores(chosen: Sequence[Sequence[str]], actual: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of entities over rows of tags: an entity counts where its type and both its ends are right."""
    hits = predicted = there = 0
    for one, other in zip(chosen, actual, strict=True):
        found, known = entities(one), entities(other)
        hits, predicted, there = hits + len(found & known), predicted + len(found), there + len(known)
    return {
        "precision": hits / predicted if predicted else 0.0,
        "recall": hits / there if there else 0.0,
        "f1": f1(hits, predicted, there),
    }
