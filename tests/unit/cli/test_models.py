"""``martlet models``: registering, pushing, and what is refused before anything is asked for."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MODEL = {"id": "mine", "object": "model", "name": "mine", "source": "org/model@v1"}


def test_a_model_is_registered_with_a_template_from_a_file_or_by_name(
    gateway: Any, martlet: Callable[..., Any], tmp_path: Path
) -> None:
    gateway.answers = {"POST /v1/martlet/models": MODEL}
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    register = ("models", "register", "mine", "--source", "org/model", "--revision", "v1")
    for given in (str(template), "chatml"):
        assert martlet(*register, "--chat-template", given, "--json").json == MODEL
    first, second = gateway.bodies("/v1/martlet/models")
    assert first == {"name": "mine", "source": "org/model", "revision": "v1", "chat_template": "{{ messages }}"}
    assert second["chat_template"] == "chatml"
    assert martlet(*register, "--chat-template", "./missing.jinja", "--json").code == 2


def test_registered_models_are_listed_and_forgotten(gateway: Any, martlet: Callable[..., Any]) -> None:
    gateway.answers = {
        "GET /v1/martlet/models": {"object": "list", "data": [MODEL]},
        "DELETE /v1/martlet/models/mine": {"id": "mine", "deleted": True},
    }
    assert martlet("models", "list", "--registered", "--json").json == [MODEL]
    assert martlet("models", "unregister", "mine", "--json").json["deleted"]


@pytest.fixture
def pushed_model(gateway: Any) -> None:
    content = b"{}"
    files = [{"path": "config.json", "size_bytes": str(len(content)), "sha256": hashlib.sha256(content).hexdigest()}]
    model = {"id": "mine", "object": "model", "created": 1, "owned_by": "acme", "martlet": {"artifact": "artifacts/a1"}}
    gateway.answers = {
        "GET /v1/models/mine": model,
        "GET /v1/martlet/artifacts/a1": {"files": files},
        "GET /v1/martlet/artifacts/a1/files/config.json": {},
        "GET /v1/martlet/lineage/mine": {"card": 1},
    }


def test_a_model_goes_to_the_hub_with_its_card_by_the_trainers_environment(
    pushed_model: None, martlet: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "envs" / "trainer" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\nls "$3" | tr "\\n" " " >&2; echo "$2 $4 $5" >&2\necho "{\\"commit\\": \\"http://hub/c\\"}"\n'
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("MARTLET_ENVIRONMENTS", str(tmp_path / "envs"))
    done = martlet("models", "push", "mine", "--to", "hf:org/mine", "--public", "--json")
    assert done.json == {"commit": "http://hub/c"}


def test_without_the_trainers_environment_it_says_what_to_make(
    gateway: Any, martlet: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARTLET_ENVIRONMENTS", str(tmp_path / "none"))
    assert (
        martlet("models", "push", "base", "--to", "hf:org/mine", "--json").json["error"]["reason"]
        == "ENVIRONMENT_MISSING"
    )
