"""What the commands print: tables and bars for people, JSON for programs, plain lines when nobody watches."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_STATE_STYLES = {
    "succeeded": "green",
    "ready": "green",
    "ok": "green",
    "passed": "green",
    "running": "cyan",
    "starting": "yellow",
    "queued": "yellow",
    "validating_files": "yellow",
    "pausing": "magenta",
    "paused": "magenta",
    "restarting": "red",
    "failed": "red",
    "missing": "red",
    "error": "red",
    "untried": "yellow",
    "skipped": "dim",
    "cancelled": "dim",
    "stopped": "dim",
}


class Output:
    """Where a command's results and remarks go.

    Results go to stdout, remarks and errors to stderr, so that ``--json`` output can be piped.

    Attributes:
        as_json: print results as JSON and nothing else on stdout.
        console: for results.
        remarks: for everything that isn't a result.
    """

    def __init__(self, as_json: bool = False, console: Console | None = None, remarks: Console | None = None) -> None:
        self.as_json = as_json
        # No emoji: `ft:m:acme` is a name, and not a circled letter.
        self.console = console or Console(highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())
        self.remarks = remarks or Console(stderr=True, highlight=False, emoji=False, soft_wrap=not sys.stderr.isatty())

    @property
    def live(self) -> bool:
        """Whether bars may move: a person watches a terminal."""
        return not self.as_json and self.console.is_terminal

    def json(self, value: Any) -> None:
        """Print one JSON value: indented for a person, one line in a pipe (so that several make JSON lines)."""
        indent = 2 if self.console.is_terminal else None
        self.console.file.write(json.dumps(value, indent=indent, default=str) + "\n")
        self.console.file.flush()

    def result(self, value: Any, text: str) -> None:
        """Print a result: the value with ``--json``, else the text (rich markup allowed)."""
        if self.as_json:
            self.json(value)
        else:
            self.console.print(text)

    def table(
        self, rows: Sequence[Mapping[str, Any]], columns: Iterable[str], title: str = "", empty: str = "none"
    ) -> None:
        """Print rows: all their fields with ``--json``, the given columns otherwise."""
        if self.as_json:
            self.json(list(rows))
            return
        if not rows:
            self.console.print(f"[dim]{escape(empty)}[/]")
            return
        names = list(columns)
        if not self.console.is_terminal:  # for awk and grep: tab-separated, no borders, nothing cut
            lines = [names, *([cell(row.get(name)).replace("\t", " ") for name in names] for row in rows)]
            self.console.file.writelines("\t".join(line) + "\n" for line in lines)  # rich would make spaces of tabs
            return
        table = Table(title=title or None, title_justify="left", header_style="bold")
        for name in names:
            numeric = all(isinstance(row.get(name), int | float) for row in rows)
            table.add_column(name.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(styled(name, row.get(name)) for name in names))
        self.console.print(table)

    def facts(self, value: Mapping[str, Any], *, as_typed: bool = False) -> None:
        """Print one object: JSON, or a name and a value a line; ``as_typed`` keeps the underscores of names."""
        if self.as_json:
            self.json(value)
            return
        shown = [(name, item) for name, item in value.items() if item not in (None, "", [], {})]
        width = max((len(name) for name, _ in shown), default=0)
        for name, item in shown:
            label = name if as_typed else name.replace("_", " ")
            self.console.print(f"[bold]{label:<{width}}[/]  {styled(name, item)}")

    def say(self, text: str) -> None:
        """A remark for the person who watches (rich markup allowed); goes to stderr."""
        self.remarks.print(text)

    def error(self, text: str) -> None:
        """Say what went wrong."""
        self.remarks.print(f"[red]error:[/] {escape(text)}")


def cell(value: Any) -> str:
    """A value as a cell of a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict | list):
        return json.dumps(value)
    return str(value)


def styled(name: str, value: Any) -> str:
    """A cell with the colour of its meaning, as rich markup."""
    text = escape(cell(value))
    style = _STATE_STYLES.get(text.lower()) if name in ("state", "status", "health", "result") else None
    return f"[{style}]{text}[/]" if style else text


def duration(seconds: float | None) -> str:
    """Seconds for people: ``8.2 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes for people: ``1.5 MB`` (powers of 1,000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
