"""ModelScope over real HTTP: what comes, what doesn't, and what is said when nothing can."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from martlet_core.errors import FailedPrecondition, NotFound, Unavailable
from martlet_core.hub import snapshot, with_template
from martlet_core.testing.hub import FakeHub

MODEL = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"a pickle",
    "modeling.py": b"import os",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub({f"models/org/name/{path}": data for path, data in MODEL.items()}) as made:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", made.url)
        yield made


def test_weights_and_configuration_come_once_and_code_and_pickles_never(hub: FakeHub, tmp_path: Path) -> None:
    found = snapshot("ms:org/name@v1", tmp_path)
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {
        name: MODEL[name] for name in ("config.json", "model.safetensors")
    }
    asked = len(hub.asked)
    assert snapshot("ms:org/name@v1", tmp_path) == found
    assert len(hub.asked) == asked, "what is in the cache is not asked for again"
    assert snapshot("ms:org/name", tmp_path) != found, "another revision has a place of its own"


def test_data_sets_are_rows_and_nothing_else(hub: FakeHub, tmp_path: Path) -> None:
    hub.files |= {
        "datasets/org/rows/a.jsonl": b"{}\n",
        "datasets/org/rows/load.py": b"",
        "datasets/org/csv/a.csv": b"a\n",
    }
    assert [path.name for path in snapshot("ms:org/rows", tmp_path, "dataset").iterdir()] == ["a.jsonl"]
    with pytest.raises(FailedPrecondition) as refused:
        snapshot("ms:org/csv", tmp_path, "dataset")
    assert refused.value.reason == "HUB_FORMAT_REFUSED"


def test_a_model_of_pickles_alone_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {"models/org/old/config.json": b"{}", "models/org/old/pytorch_model.bin": b"a pickle"}
    with pytest.raises(FailedPrecondition, match="a pickle can run code") as refused:
        snapshot("ms:org/old", tmp_path)
    assert refused.value.reason == "HUB_FORMAT_REFUSED"


def test_files_that_arent_what_the_hub_lists_leave_nothing(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("martlet_core.testing.hub._sha", lambda data: hashlib.sha256(b"other").hexdigest())
    with pytest.raises(FailedPrecondition) as refused:
        snapshot("ms:org/name", tmp_path)
    assert refused.value.reason == "CONTENT_MISMATCH"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_path_out_of_the_repository_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["models/org/bad/../../../evil.json"] = b"{}"
    with pytest.raises(FailedPrecondition) as refused:
        snapshot("ms:org/bad", tmp_path)
    assert refused.value.reason == "INVALID_PATH"
    assert not list(tmp_path.rglob("evil.json"))


def test_what_isnt_there_and_what_cant_be_reached_are_told_apart(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound, match="MODELSCOPE_API_TOKEN") as missing:
        snapshot("ms:org/nothing", tmp_path)
    assert missing.value.reason == "HUB_MODEL_NOT_FOUND"
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="HTTPS_PROXY, MODELSCOPE_ENDPOINT") as offline:
        snapshot("ms:org/name", tmp_path)
    assert offline.value.reason == "HUB_UNREACHABLE"
    assert offline.value.retry_after_seconds


def test_another_chat_template_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "chat_template.jinja").write_text("its own")
    found = with_template(model, "another", tmp_path / "made" / "x")
    assert {path.name: path.read_text() for path in found.iterdir()} == {
        "config.json": "{}",
        "chat_template.jinja": "another",
    }
    assert (model / "chat_template.jinja").read_text() == "its own"
    assert with_template(model, "another", found) == found
