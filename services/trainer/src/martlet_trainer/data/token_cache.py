"""Tokens of a data set in files, which the training maps into memory: a data set may be larger than that, and another job of the same content
finds them again.

An entry is a directory named after what its tokens depend on: the contents of the data set and of the tokenizer, and how rows are read. It is written
once, under a lock, and never changed. The least recently used entries go when there are too many; a training that has one open keeps it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import numpy as np
from martlet_inputs.rows.report import DataReport, RowIssue

from martlet_trainer.data.encode import EncodedRow

#: Bound of the cache of a machine in bytes; a larger entry still goes in, alone.
MAX_BYTES = 16 << 30
#: Changes when rows are encoded in another way.
_FORMAT = 2
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.model",
    "vocab*",
    "merges.txt",
)
#: File -> type of its elements: tokens, marks and weights of all rows end to end; of each row its end, whether it was cut, and whether it has
#: weights of its own.
_ARRAYS: Mapping[str, Any] = {
    "input_ids": np.int32,
    "is_target": np.bool_,
    "weights": np.float32,
    "ends": np.int64,
    "truncated": np.bool_,
    "weighted": np.bool_,
}
_META = "meta.json"


class TokenFile(Sequence[EncodedRow]):
    """The rows of an entry, read where they lie.

    Attributes:
        report: what happened to the rows when they were encoded.
        added_eos: rows to which the end-of-sequence token was added.
    """

    def __init__(self, directory: Path) -> None:
        meta = json.loads((directory / _META).read_text(encoding="utf-8"))
        issues = [RowIssue(**issue) for issue in meta["report"].pop("issues")]
        self.report = DataReport(**meta["report"], issues=issues)
        self.added_eos = int(meta["added_eos"])
        self._arrays = {name: _mapped(directory / name, kind) for name, kind in _ARRAYS.items()}

    def __len__(self) -> int:
        return len(self._arrays["ends"])

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedRow]: ...
    def __getitem__(self, index: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start, end = int(self._arrays["ends"][index - 1]) if index else 0, int(self._arrays["ends"][index])
        ids, targets = self._arrays["input_ids"][start:end], self._arrays["is_target"][start:end]
        weights = self._arrays["weights"][start:end] if self._arrays["weighted"][index] else None
        return EncodedRow(ids, targets, bool(self._arrays["truncated"][index]), weights)


def entry_name(dataset: Path, base_model: Path, options: Mapping[str, Any]) -> str:
    """Name of the entry of a data set's tokens.

    Args:
        dataset: a data file, or a directory of them.
        base_model: directory with the tokenizer.
        options: all else that decides which tokens a row becomes, JSON-ready.
    """
    files = [dataset] if dataset.is_file() else sorted(path for path in dataset.rglob("*") if path.is_file())
    tokenizer = sorted({path for pattern in _TOKENIZER_FILES for path in base_model.glob(pattern) if path.is_file()})
    parts = {
        "format": _FORMAT,
        "libraries": {name: version(name) for name in ("tokenizers", "transformers", "jinja2")},
        "dataset": [(path.relative_to(dataset.parent).as_posix(), _sha256(path)) for path in files],
        "tokenizer": [(path.name, _sha256(path)) for path in tokenizer],
        "options": options,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def locked(root: Path, name: str) -> Iterator[Path]:
    """The entry's place, whether it is there or not, for one process at a time."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield root / name


def open_entry(place: Path) -> TokenFile | None:
    """The entry, marked as used; None if there is none."""
    if not place.is_dir():
        return None
    os.utime(place)
    return TokenFile(place)


def write_entry(place: Path, rows: Iterable[EncodedRow], report: DataReport, added_eos: Any) -> TokenFile:
    """Make an entry of rows, one after the other.

    Args:
        place: where to.
        rows: the rows; ``report`` and ``added_eos()`` are right once they have ended.
        report: what happened to them.
        added_eos: gives the rows to which the end-of-sequence token was added.
    """
    partial = Path(tempfile.mkdtemp(prefix=".part-", dir=place.parent))
    try:
        with ExitStack() as stack:
            files = {name: stack.enter_context((partial / name).open("wb")) for name in _ARRAYS}
            end = 0
            for row in rows:
                end += len(row.input_ids)
                report.tokens += row.token_count
                report.loss_tokens += row.target_count
                values = {
                    "input_ids": row.input_ids,
                    "is_target": row.is_target,
                    "weights": row.is_target if row.weights is None else row.weights,
                    "ends": end,
                    "truncated": row.truncated,
                    "weighted": row.weights is not None,
                }
                for name, value in values.items():
                    files[name].write(np.asarray(value, dtype=_ARRAYS[name]).tobytes())
        meta = {"report": asdict(report), "added_eos": added_eos()}
        (partial / _META).write_text(json.dumps(meta), encoding="utf-8")
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return TokenFile(place)


def make_room(root: Path, keep: Path, max_bytes: int = MAX_BYTES) -> None:
    """Remove the least recently used entries until the others fit."""
    entries = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".") and path != keep]
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in [*entries, keep]}
    total = sum(sizes.values())
    for path in sorted(entries, key=lambda entry: entry.stat().st_mtime):
        if total <= max_bytes:
            return
        shutil.rmtree(path, ignore_errors=True)
        (root / f".{path.name}.lock").unlink(missing_ok=True)
        total -= sizes[path]


def _mapped(path: Path, kind: Any) -> np.ndarray:
    if not path.stat().st_size:
        return np.zeros(0, dtype=kind)
    # Private and writable: torch complains of read-only memory, and nothing that is written there reaches the file.
    return np.asarray(np.memmap(path, dtype=kind, mode="c"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
