"""A tiny random model with a real tokenizer and chat template, and what a recipe is given."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from martlet_trainer import testing, testing_cases

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two busy cores: threads that spin only take time from one another


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Bytes as tokens, with the special tokens of ChatML."""
    return testing.byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with grouped key heads, context 512."""
    return testing_cases.save_tiny_llama(tmp_path_factory.mktemp("base"), intermediate_size=96)


@pytest.fixture
def make_workdir(tmp_path: Path, tiny_model_dir: Path) -> Callable[..., Path]:
    """Makes a job's working directory by name: ``make_workdir("a", rows, validation=rows, resume=directory)``."""

    def make(name: str, rows: list[Any], **inputs: Any) -> Path:
        return testing.lay_out(tmp_path / name, tiny_model_dir, rows, **inputs)

    return make


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers that test modules take, under short names."""
    return SimpleNamespace(
        Recorder=testing.Recorder,
        chat_rows=testing.chat_rows,
        write_jsonl=testing.write_jsonl,
        spec=testing.training_spec,
    )
