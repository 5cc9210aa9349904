"""Data sets of hubs as a job's inputs, over real HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest
from martlet_core.errors import Unavailable
from martlet_core.testing.hub import FakeHub
from martlet_inputs.hub_datasets import link_hub_datasets
from martlet_inputs.rows.read import read_rows


class Said:
    """A report that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def phase(self, name: str) -> None:
        """See ``Report``."""

    def log(self, message: str, level: str = "info") -> None:
        """See ``Report``."""
        self.lines.append(message)


def test_rows_of_the_training_split_alone_where_files_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "data/train-00000.jsonl": b'{"a": 1}\n',
        "data/test-00000.jsonl": b'{"a": 2}\n',
        "constraints.jsonl": b'{"a": 3}\n',
    }
    plain = {"one.jsonl": b'{"a": 4}\n', "two.jsonl": b'{"a": 5}\n'}
    said = Said()
    with FakeHub(
        {f"datasets/org/split/{k}": v for k, v in files.items()}
        | {f"datasets/org/plain/{k}": v for k, v in plain.items()}
    ) as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        wanted = {"training_dataset": "ms:org/split@v1", "training_dataset_2": "ms:org/plain@v1"}
        link_hub_datasets(wanted, tmp_path / "cache", tmp_path / "work", said)  # type: ignore[arg-type]
    inputs = tmp_path / "work" / "inputs"
    assert [dict(row.values or {}) for row in read_rows(inputs / "training_dataset")] == [{"a": 1}]
    assert [dict(row.values or {}) for row in read_rows(inputs / "training_dataset_2")] == [{"a": 4}, {"a": 5}]
    assert said.lines == ["ms:org/split@v1: 1 files; 2 of other splits are left out", "ms:org/plain@v1: 2 files"]


def test_a_hub_that_cant_be_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="MODELSCOPE_ENDPOINT"):
        link_hub_datasets({"training_dataset": "ms:org/rows@v1"}, tmp_path / "c", tmp_path / "w", Said())  # type: ignore[arg-type]
