"""The table of the life-cycle demo, from what a run and its evaluation say."""

from __future__ import annotations

import io
from typing import Any

from martlet_cli import lifecycle
from martlet_cli.output import Output
from rich.console import Console

QUANTIZED = {
    "size_ratio": 0.416,
    "perplexity_ratio": 1.456,
    "size_bytes": 111_900_000.0,
    "base_size_bytes": 269_100_000.0,
}
RUN = {
    "steps": [
        {"id": "nf4", "kind": "quantize", "metrics": QUANTIZED},
        {"id": "evaluate", "kind": "evaluate", "job": "evaluationJobs/e1", "metrics": {}},
    ]
}


class Answers:
    """A gateway that knows one evaluation."""

    def call(self, method: str, path: str) -> dict[str, Any]:
        assert (method, path) == ("GET", "/evaluation/jobs/e1")
        speed = {"latency.tokens_per_second.c8": {"value": 65.2}}
        accuracies = {"tuned": 0.683, "merged": 0.677, "nf4": 0.742}
        targets = [
            {"name": name, "model": f"ft:{name}", "metrics": {"classification.accuracy": accuracy(value), **speed}}
            for name, value in accuracies.items()
        ]
        return {"result": {"targets": targets}}


def accuracy(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.04, "high": value + 0.04}


def test_each_variant_has_what_was_measured_of_it_and_no_more() -> None:
    gateway: Any = Answers()
    variants = {variant.name: variant for variant in lifecycle.variants_of(gateway, RUN)}
    assert list(variants) == ["tuned", "merged", "nf4"]
    assert (variants["tuned"].size_ratio, variants["tuned"].perplexity_ratio) == (None, None)
    assert (variants["merged"].size_ratio, variants["merged"].size_bytes) == (1.0, 269_100_000)
    nf4 = variants["nf4"]
    assert (nf4.accuracy, nf4.size_ratio, nf4.perplexity_ratio) == (0.742, 0.416, 1.456)
    assert nf4.tokens_per_second == 65.2


def test_the_table_shows_them() -> None:
    gateway: Any = Answers()
    screen = io.StringIO()
    output = Output(console=Console(file=screen, width=200))
    result = {"dataset": "headlines", "alias": "headlines", "total_seconds": 100.0}
    lifecycle._show(output, result, lifecycle.variants_of(gateway, RUN))
    assert "nf4\t74.2%\t70.2% to 78.2%\tx 1.456\t111.9 MB (x 0.42)\t65\tft:nf4" in screen.getvalue()
    assert "tuned\t68.3%\t64.3% to 72.3%\t\t\t65\tft:tuned" in screen.getvalue()
