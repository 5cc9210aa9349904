"""Several data sets as one: which rows of each are trained on, which validate, and how many of what."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeVar, overload

import numpy as np
from martlet_core.errors import InvalidArgument
from martlet_inputs.rows.report import DataReport, SourceCount, joined

from martlet_trainer.config import DatasetSample

T = TypeVar("T")


class Rows(Sequence[T]):
    """Rows of several sequences, chosen by number, as one sequence. The rows stay where they are.

    Args:
        parts: sequences, each with the numbers of the rows that count, in order and perhaps several times.
    """

    def __init__(self, parts: Sequence[tuple[Sequence[T], np.ndarray]]) -> None:
        self._parts = [(rows, numbers) for rows, numbers in parts if len(numbers)]
        self._ends = list(accumulate(len(numbers) for _, numbers in self._parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        part = bisect_right(self._ends, index)
        rows, numbers = self._parts[part]
        return rows[int(numbers[index - (self._ends[part - 1] if part else 0)])]


def mix(
    loaded: Sequence[tuple[DatasetSample, Sequence[Any], DataReport]], validation_split: float, seed: int
) -> tuple[Rows[Any], Rows[Any], DataReport]:
    """Training rows, validation rows, and a report over all data sets.

    The share for validation is taken from each data set before its rows are drawn: every one is validated on, and no row is in both.

    Args:
        loaded: each data set as asked for, its rows, and what happened to them.
        validation_split: share of each data set's rows to validate on; 0 for none.
        seed: the same seed chooses the same rows.

    Raises:
        InvalidArgument: a data set has too few rows to be split.
    """
    training: list[tuple[Sequence[Any], np.ndarray]] = []
    validation: list[tuple[Sequence[Any], np.ndarray]] = []
    counts = []
    for index, (source, rows, report) in enumerate(loaded):
        kept = np.arange(len(rows))
        if validation_split > 0:
            kept, apart = _split(len(rows), validation_split, seed + index, source)
            validation.append((rows, apart))
        drawn = _draw(kept, source, seed + index)
        training.append((rows, drawn))
        tokens = sum(rows[int(number)].token_count for number in drawn) if len(loaded) > 1 else report.tokens
        counts.append(SourceCount(source.name or source.dataset, source.dataset, report.rows_used, len(drawn), tokens))
    reports = [report for _, _, report in loaded]
    whole = joined([(count.name, report) for count, report in zip(counts, reports, strict=True)])
    whole.sources = counts if len(loaded) > 1 or loaded[0][0].samples else []
    return Rows(training), Rows(validation), whole


def _split(count: int, share: float, seed: int, source: DatasetSample) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of a data set's rows to train on, and of those to validate on; neither is ever empty."""
    if count < 2:
        text = f"needs at least two usable rows in {source.name or source.dataset}; set it to 0, or bring more rows"
        raise InvalidArgument.field("spec.data.validation_split", text)
    size = min(max(1, round(count * share)), count - 1)
    apart = np.zeros(count, dtype=bool)
    apart[np.random.default_rng([seed, 0x5711]).permutation(count)[:size]] = True
    return np.flatnonzero(~apart), np.flatnonzero(apart)


def _draw(numbers: np.ndarray, source: DatasetSample, seed: int) -> np.ndarray:
    """The rows that are asked for. More than there are: all of them as often as they go in, then a choice for the rest."""
    wanted = source.count or (max(1, round(source.share * len(numbers))) if source.share else len(numbers))
    whole, rest = divmod(wanted, len(numbers))
    chosen = np.sort(np.random.default_rng([seed, 0xD4A2]).permutation(len(numbers))[:rest])
    return np.concatenate([*[numbers] * whole, numbers[chosen]])
