"""Hugging Face over real HTTP, with its own library: what goes up, comes down, and what is said when nothing can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from martlet_core.errors import FailedPrecondition, InvalidArgument, NotFound
from martlet_core.hub import snapshot
from martlet_core.hub_push import push
from martlet_core.testing.hub import COMMIT, FakeHub

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub(token="hf_right") as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("config.json", "model.safetensors", "README.md", "training_args.bin", "secrets.env"):
        (directory / name).write_text(f"content of {name}")
    return directory


def as_a_process(model: Path, target: str, **environ: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "martlet_core.hub_push", str(model), target]
    done = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=True)
    assert "hf_" not in done.stdout, "a token is never said"
    return json.loads(done.stdout.splitlines()[-1])


def test_weights_configuration_and_card_go_up_and_come_down_again(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    answer = as_a_process(model, "hf:org/mine")
    assert answer["commit"].endswith(COMMIT)
    assert set(hub.of("models/org/mine")) == {"config.json", "model.safetensors", "README.md"}
    found = snapshot(f"org/mine@{COMMIT}", tmp_path / "cache")
    assert {path.name: path.read_text() for path in found.iterdir()} == {
        name: f"content of {name}" for name in ("config.json", "model.safetensors")
    }


def test_a_token_that_may_not_write_is_refused(hub: FakeHub, model: Path) -> None:
    answer = as_a_process(model, "org/mine", HF_TOKEN="hf_wrong")
    assert answer["error"]["reason"] == "HUB_WRITE_REFUSED"
    assert not hub.files


def test_without_a_token_weights_or_a_repository_nothing_is_sent(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in ("ms:org/mine", "org/mine@main", "mine"):
        with pytest.raises(InvalidArgument, match="hf:org/name"):
            push(model, target)
    (model / "model.safetensors").unlink()
    with pytest.raises(FailedPrecondition, match="no weights"):
        push(model, "org/mine")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FailedPrecondition, match="HF_TOKEN"):
        push(model, "org/mine")
    assert not hub.asked


def test_a_hub_that_cant_be_reached_is_said_with_its_remedy(model: Path) -> None:
    answer = as_a_process(model, "org/mine", HF_ENDPOINT="http://127.0.0.1:1", HF_TOKEN="hf_right")
    assert answer["error"]["reason"] == "HUB_UNREACHABLE"
    assert "HTTPS_PROXY" in answer["error"]["message"]


def test_what_isnt_there_is_not_found(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="HF_TOKEN"):
        snapshot("org/nothing@main", tmp_path)
