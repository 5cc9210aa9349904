"""Real rows for the recipes' benchmark: headlines, LLaMA-Factory's demonstration sets, sums of reasoning-gym. Standard library only."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from environment import ROOT
from headlines import DATA as HEADLINES
from headlines import TRAINER_PYTHON, prepare_rows

EXAMPLES = ROOT / ".martlet" / "examples"
_DEMOS = EXAMPLES / "llamafactory"
_PACKAGE = "llamafactory==0.9.5"
_SHA256 = "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f"
_SUMS = EXAMPLES / "reasoning-gym"
_GYM = "reasoning-gym==0.1.25"
#: Printed by a Python that has reasoning-gym. The seed tells training rows from held-out ones, of which none is among the first.
_MAKE_SUMS = """
import json, reasoning_gym
def sums(size, seed):
    numbers = dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    return [(row["question"], row["answer"]) for row in reasoning_gym.create_dataset("chain_sum", size=size, seed=seed, **numbers)]
held_out = sorted(set(sums(60, 2)))[:32]
print(json.dumps({"train": [row for row in sums(2000, 1) if row not in held_out][:400], "held_out": held_out}))
"""
_LONGEST = 2500  # characters of a row
_FEWEST = 60  # rows: fewer held-out ones tell nothing

#: Rows to train on and rows held out.
Parts = tuple[list[Any], list[Any]]


def headlines(change: Callable[[str, str, int], Any] | None = None) -> Parts:
    """Headlines with yes or no (is it sarcastic), or what ``change(prompt messages, label, row number)`` makes of them."""
    prepare_rows()
    rows = _read(HEADLINES / "train.jsonl")[:1280]
    if change is not None:
        rows = [change(row["messages"][:-1], row["messages"][-1]["content"], number) for number, row in enumerate(rows)]
    return rows[:1024], rows[1024:]


def headline_pairs() -> Parts:
    """Headlines, the right answer preferred to the wrong one."""

    def pair(prompt: Any, label: str, _: int) -> Any:
        return {"messages": [*prompt, _says(label)], "rejected_response": _other(label)}

    return headlines(pair)


def headline_verdicts() -> Parts:
    """Headlines with the right answer (good) and the wrong one (bad) in turn."""

    def verdict(prompt: Any, label: str, number: int) -> Any:
        good = number % 2 == 0
        return {"messages": [*prompt, _says(label if good else _other(label))], "label": good}

    return headlines(verdict)


def demonstrations(file: str) -> Parts:
    """The short rows of a demonstration set, the last quarter held out."""
    _fetch_demonstrations(file)
    rows = [row for row in _read(_DEMOS / file) if len(json.dumps(row)) <= _LONGEST]
    if len(rows) < _FEWEST:
        raise SystemExit(f"{file}: {len(rows)} rows are short enough, fewer than {_FEWEST}")
    count = len(rows) * 3 // 4
    return rows[:count], rows[count:]


def sums() -> Parts:
    """Sums of two one-digit numbers, plus or minus, as reasoning-gym asks them; the model finds the answers by itself."""
    path = _SUMS / "sums.json"
    if not path.is_file():
        python = _SUMS / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", str(_SUMS / "venv")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-input", _GYM], check=True)
        made = subprocess.run([str(python), "-c", _MAKE_SUMS], check=True, stdout=subprocess.PIPE, text=True)
        path.write_text(made.stdout)
    parts = json.loads(path.read_text())
    return _questions(parts["train"]), _questions(parts["held_out"])


def _questions(rows: list[list[str]]) -> list[Any]:
    return [{"messages": [{"role": "user", "content": question}], "solution": answer} for question, answer in rows]


def _says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _other(label: str) -> str:
    return {"yes": "no", "no": "yes"}[label]


def _read(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.split("\n") if line]


def _fetch_demonstrations(file: str) -> None:
    """Take one file from the package, which is read and never installed."""
    if (_DEMOS / file).is_file():
        return
    _DEMOS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        archive = next((_DEMOS).glob("*.tar.gz"), None)
        if archive is None:
            pip = ["-m", "pip", "download", "--no-deps", "--no-input", "--quiet", "--no-binary", "llamafactory"]
            subprocess.run([str(TRAINER_PYTHON), *pip, "--dest", scratch, _PACKAGE], check=True)
            found = next(Path(scratch).glob("*.tar.gz"))
            digest = hashlib.sha256(found.read_bytes()).hexdigest()
            if digest != _SHA256:
                raise SystemExit(f"{found.name} has sha256 {digest}, expected {_SHA256}")
            archive = _DEMOS / found.name
            archive.write_bytes(found.read_bytes())
        with tarfile.open(archive) as inside:
            member = inside.extractfile(f"{archive.name.removesuffix('.tar.gz')}/data/{file}")
            assert member is not None
            (_DEMOS / file).write_bytes(member.read())
