"""A data set from its files to tokens: reads, validates, encodes and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from martlet_core.recipe import Report
from martlet_inputs.rows.formats import RowError
from martlet_inputs.rows.kinds import RowKind
from martlet_inputs.rows.report import DataReport, RowIssue
from martlet_inputs.rows.validate import require_usable, valid_rows

from martlet_trainer.data.encode import EncodedRow, RowEncoder
from martlet_trainer.data.examples import Encode, Example
from martlet_trainer.data.token_cache import entry_name, locked, make_room, open_entry, write_entry

#: Rows between two looks at whether to go on.
_CHECK_ROWS = 256


@dataclass(frozen=True)
class Loading:
    """How a training's data sets become tokens.

    Attributes:
        method: what makes examples of rows.
        encoder: encodes rows for the model at hand.
        kind: what the rows are.
        on_bad_rows: ``fail`` or ``skip``.
        base_model: directory with the tokenizer.
        cache: where tokens lie in files.
        options: all else that decides which tokens a row becomes.
        report: told about what was found in the cache.
        check_stop: called now and then; raises to stop.
    """

    method: Callable[[RowEncoder], Encode]
    encoder: RowEncoder
    kind: RowKind[Any]
    on_bad_rows: str
    base_model: Path
    cache: Path
    options: Mapping[str, Any]
    report: Report
    check_stop: Callable[[], None]

    def load(self, path: Path, field: str) -> tuple[Sequence[Any], DataReport]:
        """Encode a data set, or find its tokens in the cache. Conversations and texts lie in files; other examples, of pairs or questions, in memory.

        Args:
            path: a data file, or a directory of them.
            field: the request's field that named the data set.

        Raises:
            InvalidArgument: see ``require_usable``.
        """
        name = entry_name(path, self.base_model, self.options)
        with locked(self.cache, name) as place:
            entry = open_entry(place)
            rows, report = (entry, entry.report) if entry is not None else self._encode(path, field, place)
            if entry is not None:
                self.encoder.rows_with_added_eos += entry.added_eos
                self.report.log(
                    f"{field}: the tokens of {report.rows_used} rows were in the cache; nothing was tokenized"
                )
        require_usable(report, self.on_bad_rows, field, self.kind)
        return rows, report

    def _encode(self, path: Path, field: str, place: Path) -> tuple[Sequence[Any], DataReport]:
        report, before = DataReport(), self.encoder.rows_with_added_eos
        found: Iterator[Any] = encoded_rows(path, self.method(self.encoder), self.kind, report, self.check_stop)
        first = next(found, None)
        if not isinstance(first, EncodedRow):
            rows = [] if first is None else [first, *found]
            count_tokens(report, rows)
            return rows, report
        entry = write_entry(place, chain([first], found), report, lambda: self.encoder.rows_with_added_eos - before)
        make_room(self.cache, place)
        self.report.log(f"{field}: {report.rows_used} rows were tokenized")
        return entry, report


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
