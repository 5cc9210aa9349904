"""The report of a job: ``report.json`` for programs, ``report.md`` for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_report(directory: Path, facts: Mapping[str, Any]) -> None:
    """Write both files.

    Args:
        directory: made if it isn't there.
        facts: ``spec`` (what was asked for), ``result`` (the job's result values), ``verdict`` (one sentence), ``limit``
            (largest perplexity ratio), ``samples`` ([{prompt, base, quantized}]), ``details`` (further facts), ``served``
            (a sentence about the check that comes behind the report; may be missing).
    """
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts, indent=2, ensure_ascii=False, default=str)
    (directory / "report.json").write_text(text + "\n", encoding="utf-8")
    (directory / "report.md").write_text(_markdown(facts), encoding="utf-8")


def _markdown(facts: Mapping[str, Any]) -> str:
    result = facts["result"]
    lines = [
        f"# {facts['spec']['model']}, quantized by {result['method']}",
        "",
        facts["verdict"],
        "",
        *_table(("", "unquantized", "quantized", "ratio"), _sizes(result)),
        "",
        f"Most likely token the same at {_percent(result.get('top1_agreement'))} of {result.get('positions', 0)} positions."
        f" {_calibration(result)}",
        "",
        f"Quantizing took {result['quantize_seconds']:.1f} s and at most {result['peak_memory_bytes'] / 1e9:.2f} GB of memory.",
        "",
        "## Engines",
        "",
        *_table(("engine", "loaded", "seconds", ""), [_engine(entry) for entry in result["engines"]]),
        "",
        *([facts["served"], ""] if facts.get("served") else []),
        "## Samples (greedy)",
        "",
        *_table(
            ("prompt", "unquantized", "quantized"),
            [(s["prompt"], s["base"], s["quantized"]) for s in facts.get("samples", [])],
        ),
    ]
    return "\n".join(lines) + "\n"


def _sizes(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = [
        (
            "size of the weights, MB",
            f"{result['base_size_bytes'] / 1e6:.1f}",
            f"{result['size_bytes'] / 1e6:.1f}",
            f"{result['size_ratio']:.3f}",
        ),
        ("bits a weight", "", f"{result['bits_per_weight']:.2f}", ""),
        ("group size", "", str(result["group_size"] or "none"), ""),
    ]
    if "perplexity" in result:
        perplexity = (f"{result['base_perplexity']:.3f}", f"{result['perplexity']:.3f}")
        rows.append(("perplexity on held-out text", *perplexity, f"{result['perplexity_ratio']:.4f}"))
    return rows


def _calibration(result: Mapping[str, Any]) -> str:
    if not result["calibration_rows_used"]:
        return "No texts were needed to calibrate."
    return (
        f"Calibrated with {result['calibration_rows_used']} of {result['calibration_rows_read']} rows, of which"
        f" {result['calibration_rows_chopped']} were chopped into several windows."
    )


def _engine(entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return (entry["engine"], "yes" if entry["loaded"] else "no", f"{entry['seconds']:.1f}", entry["detail"])


def _percent(share: float | None) -> str:
    return "an unknown share" if share is None else f"{share:.1%}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
