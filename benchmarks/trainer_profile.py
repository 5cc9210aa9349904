"""Where a training's time goes: torch's profiler around the sft recipe, by kind of work.

    python benchmarks/trainer_profile.py [--steps 8]

The work is that of ``trainer.py``, in both precisions: SmolLM2-135M, LoRA of rank 16 on all linear layers, batches of 16 headlines with
one-word or longer answers. What was done about the dearest kinds, and what that is worth, is measured by ``trainer_parts.py``. Times are CPU
seconds of an operator itself, added over its calls and threads' waiting included; the profiler slows small operators down, so shares are
read, not seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from environment import ROOT, machine, told_by, versions_in, write
from headlines import TRAINER_PYTHON
from trainer import PRECISIONS, run_recipe, workloads

RESULTS = ROOT / "benchmarks" / "results" / "trainer_profile.json"
#: Kinds of work and the operators that are one; the first that fits counts.
KINDS: Mapping[str, Sequence[str]] = {
    "matrix products": ("aten::mm", "aten::addmm", "mkldnn"),
    "loss": ("log_softmax", "nll_loss", "cross_entropy", "logsumexp", "aten::argmax", "aten::exp_", "aten::sub"),
    "attention": ("scaled_dot_product", "flash_attention", "aten::bmm", "aten::baddbmm", "softmax"),
    "optimizer": ("Optimizer.", "_foreach", "_fused_adam"),
    "copies": ("aten::copy_", "aten::cat", "aten::index", "aten::gather", "aten::clone", "aten::slice", "aten::stack"),
    "activations and norms": (
        "aten::silu",
        "aten::mul",
        "aten::add",
        "aten::mean",
        "aten::pow",
        "aten::rsqrt",
        "aten::neg",
        "aten::sum",
        "aten::div",
    ),
}
_SHOWN = 12


def main() -> None:
    """Run it, print the table, write the JSON; or, with --workload, be the profiled process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps (default 8)")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", choices=PRECISIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows:
        print(json.dumps(profiled(options.rows, options.steps, options.precision)))
        return
    before = machine()
    found: dict[str, Any] = {}
    for workload, rows in workloads(options.steps):
        for precision in PRECISIONS:
            told = ["--rows", str(rows), "--steps", str(options.steps), "--precision", precision]
            shares = told_by([str(TRAINER_PYTHON), __file__, *told])
            found.setdefault(precision, {})[workload] = shares
            report(f"{precision} {workload}", shares)
    versions = versions_in(TRAINER_PYTHON, ["torch", "transformers", "peft"])
    write(RESULTS, {"steps": options.steps, "precisions": found, "machine": before, "versions": versions})


def profiled(rows: Path, steps: int, precision: str) -> dict[str, Any]:
    """The shares of each kind of work, and the dearest operators."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run_recipe(rows, steps, precision)
    times = {entry.key: entry.self_cpu_time_total for entry in recorded.key_averages()}
    whole = sum(times.values())
    kinds = dict.fromkeys([*KINDS, "other"], 0.0)
    for name, time in times.items():
        kinds[kind_of(name)] += time / whole
    dearest = sorted(times, key=lambda name: -times[name])[:_SHOWN]
    return {
        "shares": {kind: round(share, 4) for kind, share in kinds.items()},
        "operators": {name: round(times[name] / whole, 4) for name in dearest},
    }


def kind_of(operator: str) -> str:
    """The kind of work that an operator is."""
    return next((kind for kind, parts in KINDS.items() if any(part in operator for part in parts)), "other")


def report(title: str, found: Mapping[str, Any]) -> None:
    """Print a table."""
    print(f"{title}: " + ", ".join(f"{kind} {share:.1%}" for kind, share in found["shares"].items()))
    for name, share in found["operators"].items():
        print(f"  {share:6.1%}  {name}")


if __name__ == "__main__":
    main()
