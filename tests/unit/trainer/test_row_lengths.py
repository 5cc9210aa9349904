"""Rows that are longer than the context are refused at submission, by the model's own tokenizer, without torch in the service."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.errors import InvalidArgument
from martlet_core.models import ObjectModelRegistry
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_trainer import row_lengths
from martlet_trainer.config import parse_training_config
from martlet_trainer.jobs import Submissions

CONTEXT = 512  # of the tiny model, whose tokens are bytes


def row(letters: int) -> str:
    turns = [{"role": "user", "content": "x" * letters}, {"role": "assistant", "content": "yes"}]
    return json.dumps({"messages": turns}) + "\n"


class Submitting:
    """Submissions for the tiny model, as an artifact or as a local directory."""

    def __init__(self, tmp_path: Path, model: Path) -> None:
        self._tmp_path = tmp_path
        self.artifacts = ContentAddressedStore(MemoryObjectStore(), tmp_path / "cache")
        models = ObjectModelRegistry(self.artifacts.objects)
        self._submissions = Submissions(
            self.artifacts,
            models,
            model_roots=(model,),
            models_dir=tmp_path / "models",
            scratch_dir=tmp_path / "scratch",
        )
        self.by_path = f"file://{model}"
        uploaded = self.artifacts.put_directory(model, kind="model", tenant="acme")
        self.by_artifact = f"artifacts/{uploaded.id}"

    def dataset(self, *rows: str) -> str:
        directory = self._tmp_path / f"rows-{len(list(self._tmp_path.iterdir()))}"
        directory.mkdir()
        (directory / "rows.jsonl").write_text("".join(rows))
        return f"artifacts/{self.artifacts.put_directory(directory, kind='dataset', tenant='acme').id}"

    async def submit(self, base_model: str, dataset: str, recipe: str = "sft", **data: Any) -> None:
        values = {"base_model": base_model, "training_dataset": dataset, "recipe": recipe, "data": data}
        await self._submissions.check_training("acme", parse_training_config(values))


@pytest.fixture
def submitting(tmp_path: Path, tiny_model_dir: Path) -> Submitting:
    return Submitting(tmp_path, tiny_model_dir)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The commands that were run to count."""
    commands: list[Any] = []
    run = subprocess.run

    def noted(command: Any, **options: Any) -> Any:
        commands.append(command)
        return run(command, **options)

    monkeypatch.setattr(row_lengths.subprocess, "run", noted)
    return commands


@pytest.mark.slow
async def test_a_row_beyond_the_context_is_named(submitting: Submitting) -> None:
    """Slow for a process that imports transformers: it is the one that counts."""
    dataset = submitting.dataset(row(10), row(600))
    with pytest.raises(InvalidArgument) as caught:
        await submitting.submit(submitting.by_artifact, dataset, on_long_rows="refuse")
    assert caught.value.reason == "BAD_ROWS"
    assert "line 2" in caught.value.message
    assert f"more than data.max_length {CONTEXT}" in caught.value.message
    assert caught.value.violations[0].field == "spec.training_dataset"


@pytest.mark.slow
async def test_long_rows_that_may_be_left_out_or_cut_are_no_fault(submitting: Submitting, counted: list[Any]) -> None:
    """Slow for the same."""
    dataset = submitting.dataset(row(10), row(600))
    await submitting.submit(submitting.by_path, dataset, on_long_rows="refuse", on_bad_rows="skip")
    assert len(counted) == 1
    await submitting.submit(submitting.by_path, dataset)
    assert len(counted) == 1, "rows that are cut need no counting"


async def test_short_rows_are_not_counted(submitting: Submitting, counted: list[Any]) -> None:
    await submitting.submit(submitting.by_path, submitting.dataset(row(10)), on_long_rows="refuse")
    assert not counted


@pytest.mark.parametrize("base", ["by_path", "by_artifact"])
async def test_max_length_beyond_the_context_is_refused(submitting: Submitting, counted: list[Any], base: str) -> None:
    with pytest.raises(InvalidArgument, match=f"more than the model's context of {CONTEXT} tokens") as caught:
        await submitting.submit(getattr(submitting, base), submitting.dataset(row(10)), max_length=CONTEXT + 1)
    assert caught.value.violations[0].field == "spec.data.max_length"
    assert not counted


async def test_the_catalogue_says_the_context_of_a_model_that_is_not_here(submitting: Submitting) -> None:
    with pytest.raises(InvalidArgument, match="context of 8192 tokens"):
        await submitting.submit("smollm2-135m-instruct", submitting.dataset(row(10)), max_length=8193)


async def test_a_count_that_fails_leaves_the_judgement_to_the_worker(
    submitting: Submitting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gives_up(command: Any, **options: Any) -> Any:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(row_lengths.subprocess, "run", gives_up)
    await submitting.submit(submitting.by_path, submitting.dataset(row(600)), on_long_rows="refuse")
    assert "the worker will judge" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "rows"),
    [
        ("grpo", [{"prompt": "x", "solution": 1}, {"prompt": "x" * 600, "solution": 1}]),
        (
            "dpo",
            [{"prompt": "x", "chosen": "a", "rejected": "b"}, {"prompt": "x" * 600, "chosen": "a", "rejected": "b"}],
        ),
    ],
)
async def test_rows_of_every_kind_are_counted(submitting: Submitting, recipe: str, rows: list[Any]) -> None:
    """A question is never cut, so it is counted without being asked; slow for the process that counts."""
    dataset = submitting.dataset(*(json.dumps(values) + "\n" for values in rows))
    data = {} if recipe == "grpo" else {"on_long_rows": "refuse"}
    with pytest.raises(InvalidArgument, match=r"line 2.*more than data\.max_length 512"):
        await submitting.submit(submitting.by_artifact, dataset, recipe, **data)
