"""What the pages of docs/support have in common: remarks, and where the runs were made. Imports nothing but the standard library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Footnotes:
    """Numbered remarks; the same remark gets the same number."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        """The mark of a remark."""
        shown = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
        if shown not in self._texts:
            self._texts.append(shown)
        return f"[{self._texts.index(shown) + 1}]"

    def lines(self) -> list[str]:
        """All of them, in order."""
        return [f"{number}. {text}" for number, text in enumerate(self._texts, start=1)]


def where_run(record: Mapping[str, Any]) -> list[str]:
    """A line on the machine, the days and the versions of a record's cells; none where there are no cells."""
    if not record["cells"]:
        return []
    found = record["machine"]
    dates = sorted({cell["date"] for cell in record["cells"].values()})
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    cores = "1 core" if found["cores"] == 1 else f"{found['cores']} cores"
    return [f"Run on {found['cpu']}, {cores}, {found['system']}, {' and '.join(dates)}; {versions}."]
