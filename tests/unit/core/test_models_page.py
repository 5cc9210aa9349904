"""The table of architectures: the page says what the JSON says."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import models_page

    return models_page


def test_the_page_is_what_the_json_gives(models: ModuleType) -> None:
    record = json.loads(models.DATA.read_text())
    assert models.page(record) == models.PAGE.read_text(), "run: make support-models ARGS=--page"
    whole = [name for name, cell in record["cells"].items() if all(cell.get(t) == "yes" for t in models.TRIALS)]
    assert len(whole) >= 0.95 * len(record["cells"])


def test_what_failed_has_its_reason_below(models: ModuleType) -> None:
    good = {**dict.fromkeys(models.TRIALS, "yes"), "class": "A", "packs": "yes", "date": "2026-11-29"}
    cells = {
        "good": good,
        "padded": {**good, "packs": "no | way"},
        "uncached": {**good, "cache": "none"},
        "bad": {"class": "B", "loads": "yes", "trains": "ValueError: oh", "date": "2026-11-29"},
    }
    machine = {"cpu": "a processor", "cores": 2, "system": "a system"}
    page = models.page({"cells": cells, "machine": machine, "versions": {"peft": "1"}})
    assert "**3 of 4 architectures (75.0%) pass all five.**" in page
    assert "| `good` | A | yes | yes | yes | yes | yes | yes |" in page
    assert "| `bad` | B | yes | no [1] |" in page
    assert "| `padded` | A | yes | yes | yes | yes | yes | padded [2] |" in page
    assert "yes (without a cache)" in page
    assert "2. no \\| way" in page
