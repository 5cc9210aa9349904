"""Writes ``RESULTS.md`` from the JSON of the last runs, so that no figure is copied by hand.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from typing import Any

from environment import ROOT
from report_row import Row, rounds_of
from report_rows import ROWS, has_learned
from report_trainer import parts_table, profile_table

DIRECTORY = ROOT / "benchmarks" / "results"
PAGE = ROOT / "benchmarks" / "RESULTS.md"


def main() -> None:
    """Write the page."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(DIRECTORY.glob("*.json"))}
    lines = [_INTRODUCTION, "", "| what | command | aim | seen | met |", "|---|---|---|---|---|"]
    lines += [_line(row, records.get(row.name)) for row in ROWS]
    lines += [
        "",
        *_gateway_table(records.get("gateway")),
        "",
        *_harness_table(records.get("harness")),
        "",
        *parts_table(records.get("trainer_parts")),
        "",
        *profile_table(records.get("trainer_profile")),
        "",
        *_learning_table(records.get("recipes"), "recipes"),
        "",
        *_learning_table(records.get("recipes"), "tuners"),
        "",
        *_machines(records),
        "",
    ]
    PAGE.write_text("\n".join(lines))
    print(f"written to {PAGE.relative_to(ROOT)}")


def _line(row: Row, record: Any) -> str:
    try:
        seen, met = row.seen(record or {}), {True: "yes", False: "**no**", None: ""}[row.met(record or {})]
    except KeyError:  # not run, or only in part
        seen, met = "no figure", ""
    return f"| {row.what} | `{row.name}` | {row.aim} | {seen} | {met} |"


def _gateway_table(record: Any) -> list[str]:
    """Every scenario of the gateway's benchmark."""
    if record is None:
        return []
    lines = [
        f"Gateway, all scenarios (`gateway`): requests/s and latency in ms (p50, p95, p99); {rounds_of(record)}; "
        "LiteLLM once. At 1,000 connections the engine paces its tokens.",
        "",
        "| connections | engine alone | through Martlet | through LiteLLM |",
        "|---|---|---|---|",
    ]
    for row in record["rows"]:
        cells = [_scenario_cell(row["targets"].get(name)) for name in ("engine", "gateway", "litellm")]
        lines.append(f"| {row['scenario']} | {' | '.join(cells)} |")
    return lines


def _harness_table(record: Any) -> list[str]:
    """Scores of both sides, and what one side differs from itself."""
    if record is None:
        return []
    lines = [
        f"lm-eval's stock tasks on {record['model']} (`harness`), without examples, greedy, float32: the suite asks vLLM through "
        f"the gateway, the harness loads the weights with transformers; {record['rounds']} rounds each.",
        "",
        "| task | rows | Martlet | harness | rows with the same score | with the same answer | differs from itself: Martlet, harness |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, found in record["tasks"].items():
        scores = [", ".join(f"{score:.4f}" for score in found[side]) for side in ("martlet", "harness")]
        noise = ", ".join(
            f"{found['rows'] - found['noise'][side]['same_score']} rows" for side in ("martlet", "harness")
        )
        cells = [task, found["rows"], *scores, found["same_score"], found["same_answer"], noise]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _learning_table(record: Any, part: str) -> list[str]:
    """What held-out rows say before and after a training, for each recipe, or each tuner with ``sft``."""
    if record is None or part not in record:
        return []
    titles = {
        "recipes": "Recipes with LoRA of rank 16 on real rows (`recipes`): held-out rows before and after.",
        "tuners": "Tuners with `sft` on headlines, SmolLM2-135M (`recipes --tuners`): held-out rows before and after, with each tuner's "
        "default learning rate.",
    }
    lines = [
        titles[part],
        "",
        f"| {part[:-1]} | model | rows or steps | learning rate | measured | learned |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in record[part].items():
        measured = ", ".join(
            f"{measure.removeprefix('valid_').replace('_', ' ')} {row['before'] + 0.0:.3f} -> {row['after'] + 0.0:.3f}"
            for measure, row in found["measures"].items()
        )
        if "majority_accuracy" in found:
            measured += f" (the commoner label: {found['majority_accuracy']:.3f})"
        seen = found["steps"] * found["batch"] if "batch" in found else f"{found['steps']} steps"
        learned = "yes" if has_learned(found) else "**no**"
        lines.append(f"| `{name}` | {found['model']} | {seen} | {found['learning_rate']:g} | {measured} | {learned} |")
    return lines


def _scenario_cell(result: Any) -> str:
    if result is None:
        return ""
    times = ", ".join(f"{result['latency_ms'][p]:.1f}" for p in ("p50", "p95", "p99"))
    errors = f", {result['errors']} errors" if result["errors"] else ""
    return f"{result['requests_per_second']:,.0f}/s ({times}){errors}"


def _machines(records: dict[str, Any]) -> list[str]:
    """What each benchmark ran on and with."""
    lines = ["| command | machine | load average at that time | versions |", "|---|---|---|---|"]
    for name, record in records.items():
        machine = record["machine"]
        units = ", ".join(machine.get("vector_units", []))
        what = (
            f"{machine['cpu']}, {machine['cores']} cores ({units}), {machine['memory_gb']:.0f} GB, {machine['system']}, "
            f"Python {machine['python']}"
        )
        load = machine.get("load_average_before", machine["load_average"][0])
        versions = ", ".join(f"{package} {number}" for package, number in record["versions"].items())
        lines.append(f"| `{name}` | {what} | {load:.1f} | {versions} |")
    return lines


_INTRODUCTION = """# Figures

Each line comes from the command beside it (`scripts/bench.sh NAME`; of `containers`: `make compose-test`), which measures Martlet
and its peer in one run; the JSON is in [results/](results/), and `python benchmarks/report.py` writes this page from it. Such
machines are noisy: read ratios before absolute numbers. [techniques/report.md](techniques/report.md) compares ways of training
(`python benchmarks/techniques.py`)."""


if __name__ == "__main__":
    main()
