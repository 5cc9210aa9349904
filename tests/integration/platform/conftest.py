"""Platforms of our own, started once a session, and rows to train on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from martlet_cli.testing import RunningPlatform, running_platform


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """A platform with the echo engine, which answers in any environment; everything else is the real thing."""
    home = tmp_path_factory.mktemp("echo")
    with running_platform(home, "--engine", "echo", "--environment", "inference=dev", "--wait", "all") as running:
        yield running


@pytest.fixture(scope="session")
def chatting_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """A platform with vLLM serving SmolLM2."""
    with running_platform(tmp_path_factory.mktemp("vllm"), "--wait", "all") as running:
        yield running


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two short conversations with one answer."""
    path = tmp_path_factory.mktemp("rows") / "colours.jsonl"
    names = ("apple", "rose", "tomato", "cherry", "brick", "ruby", "poppy", "beet")
    with path.open("w") as out:
        for number in range(32):
            question = f"What colour is {names[number % 8]} number {number}?"
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "Crimson."}]
            out.write(json.dumps({"messages": messages}) + "\n")
    return path
