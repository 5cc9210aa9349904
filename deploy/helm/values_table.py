"""The table of values in the chart's README, from the comments in values.yaml.

python deploy/helm/values_table.py            writes it
python deploy/helm/values_table.py --check    exit code 1 if it isn't what values.yaml says
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "martlet"
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):")
_LONGEST = 60


def rows(text: str) -> list[tuple[str, str, str]]:
    """(name, default, meaning) of every value that has a comment right above it."""
    defaults = yaml.safe_load(text)
    found: list[tuple[str, str, str]] = []
    path: list[tuple[int, str]] = []
    comment = ""
    for line in text.splitlines():
        if line.lstrip().startswith("# "):
            comment = line.strip().removeprefix("# ")
            continue
        match = _KEY.match(line)
        if match:
            indent = len(match["indent"])
            path = [step for step in path if step[0] < indent] + [(indent, match["key"])]
            if comment:
                names = [name for _, name in path]
                found.append((".".join(names), _default(defaults, names), comment))
        comment = ""
    return found


def _default(defaults: Any, names: list[str]) -> str:
    value = defaults
    for name in names:
        value = value[name]
    said = json.dumps(value)
    return said if len(said) <= _LONGEST else "see values.yaml"


def table(text: str) -> str:
    """The rows as Markdown."""
    lines = ["| value | default | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | `{default}` | {meaning} |" for name, default, meaning in rows(text)]
    return "\n".join(lines).replace("`see values.yaml`", "see values.yaml")


def main(arguments: list[str]) -> int:
    """Write or check; returns the exit code."""
    readme = CHART / "README.md"
    before = readme.read_text(encoding="utf-8")
    head, _, rest = before.partition(BEGIN)
    _, _, tail = rest.partition(END)
    after = f"{head}{BEGIN}\n{table((CHART / 'values.yaml').read_text(encoding='utf-8'))}\n{END}{tail}"
    if arguments == ["--check"]:
        if after != before:
            print(f"{readme} isn't what values.yaml says; run {Path(__file__).name}", file=sys.stderr)
        return int(after != before)
    readme.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
