"""The table of recipes and tuners: the page says what the JSON of the runs says."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import methods_page

    return methods_page


def test_the_page_is_what_the_json_gives(methods: ModuleType) -> None:
    record = json.loads(methods.DATA.read_text())
    assert methods.page(record) == methods.PAGE.read_text(), "run: python benchmarks/support_methods.py --page"
    assert record["cells"].keys() <= {f"{recipe}/{tuner}" for recipe in methods.RECIPES for tuner in methods.TUNERS}


def test_what_failed_is_named_and_has_its_reason_below(methods: ModuleType) -> None:
    good = {"trains": "yes", "resumes": "yes", "reads_back": "yes", "merges": "yes", "date": "2026-11-29"}
    cells = {
        "sft/lora": good,
        "sft/full": {name: value for name, value in good.items() if name != "merges"},
        "dpo/vera": {**good, "merges": "ValueError: no | way"},
        "reward/lisa": {"trains": "InvalidArgument: spec.tuner.kind: is lisa", "date": "2026-11-29"},
        "kto/vera": {"trains": "the loss went from 1 to 2", "date": "2026-11-29"},
    }
    machine = {"cpu": "a processor", "cores": 2, "system": "a system"}
    page = methods.page({"cells": cells, "machine": machine, "versions": {"peft": "1"}})
    assert "| `lora` | yes | not run |" in page
    assert "| `full` | yes | not run |" in page
    assert "not: merges [1]" in page
    assert "not: trains [2]" in page
    assert page.count("refused") == 2  # the cell, and what it means
    assert "1. ValueError: no \\| way" in page
    assert f"5 of {len(methods.RECIPES) * len(methods.TUNERS)} cells have been run" in page
