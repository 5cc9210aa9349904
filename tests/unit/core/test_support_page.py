"""The table of support: the page says what the JSON of the runs says."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def support(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import support_page

    return support_page


def test_the_page_is_what_the_json_gives(support: ModuleType) -> None:
    record = json.loads(support.DATA.read_text())
    assert support.page(record) == support.PAGE.read_text(), "run: python benchmarks/support_quantization.py --page"


def test_the_json_has_no_cell_that_the_page_leaves_out(support: ModuleType) -> None:
    cells = json.loads(support.DATA.read_text())["cells"]
    assert cells.keys() <= {column.key(name) for column in support.COLUMNS for name in support.ARCHITECTURES}
    assert [key for key, cell in cells.items() if "job" not in cell] == []


def record_of(cells: dict[str, Any]) -> dict[str, Any]:
    dated = {
        key: {part: {**outcome, "date": "2026-11-29"} for part, outcome in cell.items()} for key, cell in cells.items()
    }
    return {"cells": dated, "machine": {"cpu": "a processor", "cores": 2, "system": "a system"}}


def test_a_failure_has_its_reason_below_the_tables(support: ModuleType) -> None:
    good = {"quantized": "yes", "reloaded": "yes", "top1_agreement": 0.912, "size_ratio": 0.4, "perplexity_ratio": 1.1}
    refused = {"quantized": "refused", "reloaded": "", "message": "gguf can't | do that"}
    page = support.page(
        record_of(
            {
                "gguf q8_0/gemma3": {"job": refused},
                "gguf q4_0/gemma3": {"job": refused},
                "awq/llama": {"job": good, "engine": {"served": "no", "message": "no kernel", "vllm": "1"}},
                "awq/smollm2": {"job": good, "engine": {"served": "yes", "vllm": "1"}},
            }
        )
    )
    assert page.count("refused [1]") == 2
    assert "1. gguf can't \\| do that" in page
    assert "91.2 %, size 0.40 |" in page
    assert "91.2 %, size 0.40, perplexity x 1.100 |" in page
    assert "| no [2] |" in page
    assert "2. no kernel" in page
    assert "| yes |" in page
    assert f"4 of {len(support.COLUMNS) * len(support.ARCHITECTURES)} cells have been run" in page
