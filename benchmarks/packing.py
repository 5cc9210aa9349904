"""Packing against micro-batches of single rows and of several: rows a second, and the held-out loss after the same rows.

    python benchmarks/packing.py [--rows 240] [--rounds 3] [--precision bfloat16]

SmolLM2-135M, LoRA of rank 16, one epoch of headlines with yes or no: about 40 tokens a row. ``single`` has one row a micro-batch, which is
what trainers do by default whose batches are padded; ``batch`` has twelve, end to end without padding; ``packed`` has packs of 512 tokens,
into which twelve or thirteen rows go. So each takes about as many rows an optimizer step. Steps from the third on are timed. Each round has a
seed of its own: the order of the rows alone moves the held-out loss by some per cent.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from environment import ROOT, in_turn, machine, medians, told_by, versions_in, write
from headlines import LORA_RANK, MODEL, MODEL_DIRECTORY, TRAINER_PYTHON, prepare_model
from recipe_data import headlines

RESULTS = ROOT / "benchmarks" / "results" / "packing.json"
_PACK = 512  # tokens
_ROWS_A_STEP = 12
_HELD_OUT = 96
#: Settings of a side: ``hyperparameters`` and ``data``.
SIDES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "single": ({"per_device_batch_size": 1, "gradient_accumulation_steps": _ROWS_A_STEP}, {"max_length": _PACK}),
    "batch": ({"per_device_batch_size": _ROWS_A_STEP}, {"max_length": _PACK}),
    "packed": ({"per_device_batch_size": 1}, {"max_length": _PACK, "packing": True}),
}


def main() -> None:
    """Run it, print the table, write the JSON; or, with --side, be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=240, help="rows of the epoch (default 240)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts (default 3)")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(train(options.side, options.data, options.precision, options.seed)))
        return
    prepare_model()
    before = machine()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        data = write_rows(Path(scratch), options.rows)
        for number, name in in_turn(SIDES, options.rounds):
            runs[name].append(run_side(name, data, options.precision, number))
    report(runs, options.precision, before)


def write_rows(directory: Path, count: int) -> Path:
    """Headlines, to train on and held out."""
    rows, held_out = headlines()
    for name, part in (("training_dataset", rows[:count]), ("validation_dataset", held_out[:_HELD_OUT])):
        (directory / name).mkdir()
        (directory / name / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return directory


def run_side(name: str, data: Path, precision: str, seed: int) -> dict[str, float]:
    """One process; what it measured of itself."""
    told = ["--side", name, "--data", str(data), "--precision", precision, "--seed", str(seed)]
    values = told_by([str(TRAINER_PYTHON), __file__, *told])
    print(f"  {name}: {values['rows_per_second']:.2f} rows/s, loss {values['valid_loss']:.4f}", flush=True)
    return values


def train(side: str, data: Path, precision: str, seed: int) -> dict[str, float]:
    """The recipe as the worker runs it, less the worker."""
    from martlet_trainer.recipes.training import run
    from martlet_trainer.testing import Recorder
    from step_clock import WARM_STEPS, StepClock

    clock = StepClock()

    class Clocked(Recorder):
        def metrics(self, step: int, total_steps: int, values: Mapping[str, float], *rest: Any, **named: Any) -> None:
            super().metrics(step, total_steps, values, *rest, **named)
            if "loss" in values:  # and not those of a validation
                clock.mark()

    hyperparameters, reading = SIDES[side]
    spec = {
        "base_model": MODEL,
        "training_dataset": "artifacts/rows",
        "validation_dataset": "artifacts/heldout",
        "tuner": {"lora_rank": LORA_RANK},
        "hyperparameters": {"epoch_count": 1, "learning_rate": 5e-4, "precision": precision, **hyperparameters},
        "seed": seed,
        "data": dict(reading),
        "resources": {"device": "cpu"},
    }
    report = Clocked()
    with tempfile.TemporaryDirectory() as directory:
        inputs = Path(directory) / "inputs"
        inputs.mkdir()
        (inputs / "base_model").symlink_to(MODEL_DIRECTORY)
        for name in ("training_dataset", "validation_dataset"):
            (inputs / name).symlink_to(data / name)
        values = run(spec, Path(directory), report, lambda: False).values
    steps = len(report.losses)
    read = values["training_data"]
    found = clock.values(read["rows_used"] / steps, read["tokens"] / read["rows_used"])
    assert steps > WARM_STEPS
    return {**found, "rows": read["rows_used"], "valid_loss": values["metrics"]["valid_loss"]}


def report(runs: Mapping[str, list[dict[str, float]]], precision: str, before: dict[str, Any]) -> None:
    """Print the table and write the JSON, beside what another precision's run left there."""
    median = medians(runs)
    print(f"{'':8} {'rows/s':>8} {'steps':>6} {'held-out loss':>14} {'peak MB':>8}   packed's ratio of tokens/CPU-s")
    for side, row in median.items():
        ratio = median["packed"]["tokens_per_cpu_second"] / row["tokens_per_cpu_second"]
        numbers = (
            f"{row['rows_per_second']:8.2f} {row['steps']:6.0f} {row['valid_loss']:14.4f} {row['peak_memory_mb']:8.0f}"
        )
        print(f"{side:8} {numbers} {ratio:10.2f}")
    print("aim: packed beside single >= 3.0, with no larger held-out loss")
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    kept[precision] = {"median": median, "runs": runs, "threads": threads}
    versions = versions_in(TRAINER_PYTHON, ["torch", "transformers", "peft"])
    write(RESULTS, kept | {"machine": before, "versions": versions})


if __name__ == "__main__":
    main()
