"""How much of a reference a text holds: ROUGE, BLEU and chrF, by the usual packages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from rouge_score import rouge_scorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}])[^\W_])+")


class UnicodeWords:
    """Words of any script; each CJK character is one. On ASCII it does as ROUGE's own, which drops everything else."""

    def tokenize(self, text: str) -> list[str]:
        """The words in lower case."""
        return _WORD.findall(text.lower())


@cache
def _scorer(names: tuple[str, ...], use_stemmer: bool) -> rouge_scorer.RougeScorer:
    # A stemmer is for English: then ROUGE's own words are right.
    return rouge_scorer.RougeScorer(
        list(names), use_stemmer=use_stemmer, tokenizer=None if use_stemmer else UnicodeWords()
    )


def rouge(names: tuple[str, ...], text: str, reference: str, *, use_stemmer: bool = False) -> dict[str, float]:
    """F-measures of ``rouge1`` …, ``rougeL``, 0.0 to 1.0 (Lin 2004)."""
    scores = _scorer(names, use_stemmer).score(reference, text)
    return {name: float(scores[name].fmeasure) for name in names}


class CorpusMetric:
    """BLEU or chrF of a corpus out of counts that add up over rows, 0 to 100 as sacrebleu gives them.

    Args:
        metric: sacrebleu's object.
        single: the object for one row alone, where that differs.
    """

    def __init__(self, metric: Any, single: Any) -> None:
        self._metric = metric
        self._metric.num_refs = 1  # the signature asks for it
        self._single = single

    def stats(self, texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """What each row adds (rows, columns)."""
        return np.asarray(self._metric._extract_corpus_statistics(list(texts), [list(references)]), dtype=float)

    def finish(self, sums: np.ndarray) -> np.ndarray:
        """The metric from sums of counts."""
        return np.array([_score(self._metric, row) for row in sums])

    def rows(self, stats: np.ndarray) -> np.ndarray:
        """The metric of each row alone."""
        return np.array([_score(self._single, row) for row in stats])

    @property
    def signature(self) -> str:
        """How it was computed, in sacrebleu's words."""
        return str(self._metric.get_signature())


def _score(metric: Any, sums: np.ndarray) -> float:
    return float(metric._compute_score_from_stats([int(value) for value in sums]).score)


def bleu() -> CorpusMetric:
    """BLEU (Papineni 2002; Post 2018)."""
    return CorpusMetric(BLEU(), BLEU(effective_order=True))


def chrf() -> CorpusMetric:
    """chrF2 (Popović 2015)."""
    return CorpusMetric(CHRF(), CHRF())
