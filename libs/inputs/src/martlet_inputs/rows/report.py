"""What happened to the rows of a data set; mirrors ``martlet.trainer.v1.DataReport``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

#: Issues kept in a report; further ones are only counted.
MAX_ISSUES = 100


def describe_place(line: int, file: str) -> str:
    """Where a row is, for people; ``file`` is empty in a data set of one file."""
    return f"{file} line {line}" if file else f"line {line}"


@dataclass(frozen=True)
class RowIssue:
    """Something about one row.

    Attributes:
        line: line (JSONL, CSV) or row number (JSON, Parquet), counted from 1.
        field: path of the field at fault (``messages[2].role``); empty for the whole row.
        message: what is wrong and how to mend it.
        refused: True when the row is left out, False when it was cut.
        file: name of the file inside the data set; empty when it has only one.
    """

    line: int
    field: str
    message: str
    refused: bool = True
    file: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The four fields of the proto's ``RowIssue``; the file's name, if any, leads the message."""
        message = f"{self.file}: {self.message}" if self.file else self.message
        return {"line": self.line, "field": self.field, "message": message, "refused": self.refused}

    def describe(self) -> str:
        """One line for people."""
        place = describe_place(self.line, self.file)
        return f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"


@dataclass(frozen=True)
class SourceCount:
    """What one of several data sets gave; mirrors ``martlet.trainer.v1.DatasetCount``.

    Attributes:
        name: for people.
        dataset: as the request names it.
        rows_used: rows that can be used.
        rows_drawn: rows that are trained on in an epoch; a row that is drawn twice counts twice.
        tokens: tokens in these.
    """

    name: str
    dataset: str
    rows_used: int
    rows_drawn: int
    tokens: int


@dataclass
class DataReport:
    """Counts over a data set; ``rows_read == rows_used + rows_refused``, and truncated rows are used.

    Attributes:
        tokens: tokens in the used rows; 0 until a tokenizer has seen them.
        loss_tokens: tokens that carry loss.
        issues: the first ``MAX_ISSUES`` refused or truncated rows.
        format: format recognised; empty before the first row that has one.
        ignored_fields: fields that no part of training looks at, in order of appearance.
        longest_row_bytes: bytes of text in the longest row that is used; a row has fewer tokens, but for what the chat
            template adds.
        labels: classes that the rows name, each with the place of the first row that does; of rows with numbers, how many they have.
        sources: what each data set gave, where there are several or rows are drawn.
    """

    rows_read: int = 0
    rows_used: int = 0
    rows_truncated: int = 0
    rows_refused: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    issues: list[RowIssue] = field(default_factory=list)
    format: str = ""
    ignored_fields: list[str] = field(default_factory=list)
    longest_row_bytes: int = 0
    labels: dict[str | int, str] = field(default_factory=dict)
    sources: list[SourceCount] = field(default_factory=list)

    def add_used(self) -> None:
        """Count a row that is trained on."""
        self.rows_read += 1
        self.rows_used += 1

    def add_refused(self, issue: RowIssue) -> None:
        """Count a row that is left out."""
        self.rows_read += 1
        self.rows_refused += 1
        self.note(issue)

    def note(self, issue: RowIssue) -> None:
        """Keep an issue unless there are enough already."""
        if len(self.issues) < MAX_ISSUES:
            self.issues.append(issue)

    def to_dict(self) -> dict[str, Any]:
        """The fields of the proto's ``DataReport``, JSON-ready."""
        values = asdict(self)
        del values["ignored_fields"], values["longest_row_bytes"], values["labels"]
        values["issues"] = [issue.to_dict() for issue in self.issues]
        return values


def joined(parts: Sequence[tuple[str, DataReport]]) -> DataReport:
    """One report over several data sets, each with a name that its issues bear; of one, that report."""
    if len(parts) == 1:
        return parts[0][1]
    whole = DataReport()
    for name, report in parts:
        for count in ("rows_read", "rows_used", "rows_truncated", "rows_refused", "tokens", "loss_tokens"):
            setattr(whole, count, getattr(whole, count) + getattr(report, count))
        for issue in report.issues:
            whole.note(replace(issue, file=f"{name}/{issue.file}" if issue.file else name))
        for label, place in report.labels.items():
            whole.labels.setdefault(label, place)
        whole.ignored_fields += [found for found in report.ignored_fields if found not in whole.ignored_fields]
    whole.format = ", ".join(dict.fromkeys(report.format for _, report in parts))
    return whole
