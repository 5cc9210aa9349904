"""What each part of the trainer's computation is worth: the sft recipe as it is, and with one part taken out at a time.

    python benchmarks/trainer_parts.py [--steps 8] [--rounds 3] [--precision bfloat16 float32]

The work is that of ``trainer.py``. The parts are those that its profile (``trainer_profile.py``) called for: most of the time goes into matrix
products with frozen weights, so tokens that needn't be multiplied are left out; then come small operations on tensors of a layer's size, so
LoRA's are folded into the products; and in bfloat16 torch's attention kernel for CPUs took a quarter of the time, so few tokens are attended to
by plain products.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from environment import ROOT, in_turn, machine, medians, told_by, versions_in, write
from headlines import TRAINER_PYTHON
from trainer import PRECISIONS, run_recipe, workloads

RESULTS = ROOT / "benchmarks" / "results" / "trainer_parts.json"
_COMPUTATION = "martlet_trainer.training.computation"
WHOLE = "as it is"


def _misfit(*_: Any) -> None:
    raise ValueError("taken out")


#: What is taken out -> what stands in its place.
SIDES: Mapping[str, Mapping[str, Any]] = {
    WHOLE: {},
    "attention by torch's kernel alone": {"martlet_trainer.training.attention._FEW_TOKENS": 0},
    "LoRA by peft's own layers": {"martlet_trainer.recipes.method.fuse": lambda model: 0},
    "logits by the model's own head": {f"{_COMPUTATION}.LossHead.of": lambda model: None},
    "common beginnings in each row": {f"{_COMPUTATION}.has_dropout": lambda model: True},
    "padded batches": {f"{_COMPUTATION}._head_without_padding": _misfit},
}


def main() -> None:
    """Run it, print the table, write the JSON; or, with --side, be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=8, help="optimizer steps a run, the first two not timed (default 8)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts (default 3)")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="default: both")
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options.side, options.rows, options.steps, *options.precision)))
        return
    before = machine()
    found: dict[str, Any] = {}
    for workload, rows in workloads(options.steps):
        for precision in options.precision:
            told = ["--rows", str(rows), "--steps", str(options.steps), "--precision", precision]
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
            for _, name in in_turn(SIDES, options.rounds):
                runs[name].append(told_by([str(TRAINER_PYTHON), __file__, "--side", name, *told]))
            found.setdefault(precision, {})[workload] = summary(f"{precision} {workload}", runs)
    record = {
        "steps": options.steps,
        "rounds": options.rounds,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "precisions": found,
        "machine": before,
        "versions": versions_in(TRAINER_PYTHON, ["torch", "transformers", "peft"]),
    }
    write(RESULTS, record)


def run_side(name: str, rows: Path, steps: int, precision: str) -> dict[str, float]:
    """A training with a part taken out, in the trainer's environment."""
    import martlet_trainer.recipes.method  # noqa: F401  # what is patched must be there

    for place, new in SIDES[name].items():
        patch(place, new).start()
    return run_recipe(rows, steps, precision)


def summary(title: str, runs: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians, and each side's share of the whole's speed, printed and given back."""
    median = medians(runs)
    for side, row in median.items():
        ratio = row["tokens_per_second"] / median[WHOLE]["tokens_per_second"]
        print(
            f"{title:17} {side:33} {row['tokens_per_second']:6.0f} tokens/s {ratio:6.2f} {row['peak_memory_mb']:7.0f} MB"
        )
    return {"median": median, "runs": runs}


if __name__ == "__main__":
    main()
