"""A data set from its files to tokens: reads, validates, encodes and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from martlet_inputs.rows.formats import RowError
from martlet_inputs.rows.kinds import RowKind
from martlet_inputs.rows.report import DataReport, RowIssue
from martlet_inputs.rows.validate import require_usable, valid_rows

from martlet_trainer.data.examples import Encode, Example

T = TypeVar("T")

#: Rows between two looks at whether to go on.
_CHECK_ROWS = 256


def load_rows(
    path: Path, encode: Encode, kind: RowKind[Any], on_bad_rows: str, field: str, check_stop: Callable[[], None]
) -> tuple[list[Any], DataReport]:
    """Encode a data set.

    Args:
        path: a data file, or a directory of them.
        encode: for the model at hand.
        kind: what the rows are.
        on_bad_rows: ``fail`` or ``skip``.
        field: the request's field that named the data set.
        check_stop: called now and then; raises to stop.

    Raises:
        InvalidArgument: see ``require_usable``.
    """
    report = DataReport()
    rows = list(encoded_rows(path, encode, kind, report, check_stop))
    require_usable(report, on_bad_rows, field, kind)
    count_tokens(report, rows)
    return rows, report


def encoded_rows(
    path: Path, encode: Encode, kind: RowKind[Any], report: DataReport, check_stop: Callable[[], None] = lambda: None
) -> Iterator[Example]:
    """The examples that can be used, one by one; what happened to each goes into ``report``."""
    for count, row in enumerate(valid_rows(path, report, kind)):
        if count % _CHECK_ROWS == 0:
            check_stop()
        try:
            examples = encode(row.content, report.format)
        except RowError as error:
            report.add_refused(RowIssue(row.line, error.field, error.message, file=row.file))
            continue
        report.add_used()
        if any(example.truncated for example in examples):
            report.rows_truncated += 1
            report.note(
                RowIssue(
                    row.line,
                    "",
                    f"was cut to {sum(example.token_count for example in examples)} tokens (data.max_length)",
                    refused=False,
                    file=row.file,
                )
            )
        yield from examples


def count_tokens(report: DataReport, rows: Sequence[Example]) -> None:
    """Put the rows' token counts into the report."""
    report.tokens = sum(row.token_count for row in rows)
    report.loss_tokens = sum(row.target_count for row in rows)


def split_rows(rows: Sequence[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Set a share of the rows apart, the same ones for the same seed: (train, validation). Neither is ever empty."""
    count = min(max(1, round(len(rows) * share)), len(rows) - 1)
    chosen = set(np.random.default_rng([seed, 0x5711]).permutation(len(rows))[:count].tolist())
    return [row for i, row in enumerate(rows) if i not in chosen], [row for i, row in enumerate(rows) if i in chosen]
