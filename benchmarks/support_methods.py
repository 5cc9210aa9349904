"""Fills docs/support/methods.{json,md}: every recipe with every tuner, really trained, on a tiny model on a CPU.

    .martlet/envs/trainer/bin/python benchmarks/support_methods.py [--only RECIPE/TUNER] [--again] [--page]

A cell is tried as the worker would run it, as a function on a working directory: a training of ``STEPS`` steps; the same broken off
half-way and gone on with from its checkpoint; the result read back by peft or transformers; an adapter merged. What has an outcome is
not run again, so the command goes on where it ended.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import traceback
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from environment import machine, versions
from methods_page import DATA, NUMBERS, PAGE, RECIPES, TUNERS, VARIANTS, page
from support_sweep import sweep_parser

STEPS = 24
#: Rates of variants, beside those of ``SMALL_RATES``.
_RATES = {
    "full, GaLore": 1e-2,
    "full, APOLLO": 3e-3,
    "full, frozen in part": 3e-3,
    "lora, LoRA+": 3e-3,
    "lora, PiSSA": 1e-3,
    "lora, LoRA-GA": 1e-3,
    "lora, OLoRA": 1e-3,
}


def main() -> None:
    """Run what is missing, then write the page."""
    arguments = sweep_parser(__doc__, "*/*", "RECIPE/TUNER").parse_args()
    record: dict[str, Any] = json.loads(DATA.read_text()) if DATA.is_file() else {"cells": {}}
    if not arguments.page:
        with tempfile.TemporaryDirectory(prefix="martlet-bench-") as scratch:
            fill(record, arguments.only, Path(scratch), again=arguments.again)
    PAGE.write_text(page(record))
    print(f"written: {PAGE.name}")


def fill(record: dict[str, Any], only: str, scratch: Path, *, again: bool) -> None:
    """Run the cells that a pattern names; each outcome is written when it is there."""
    from martlet_trainer.testing_cases import save_tiny_llama, save_tiny_teacher

    base = save_tiny_llama(scratch / "base")
    save_tiny_teacher(scratch / "teacher")
    for recipe in RECIPES:
        for tuner in TUNERS:
            key = f"{recipe}/{tuner}"
            if not fnmatch(key, only) or (key in record["cells"] and not again):
                continue
            begun = time.monotonic()
            outcome = try_cell(recipe, tuner, base, scratch / key.replace("/", "-").replace(" ", ""))
            outcome |= {"seconds": round(time.monotonic() - begun, 1), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
            record["cells"][key] = outcome
            record["machine"] = {name: value for name, value in machine().items() if name != "load_average"}
            record["versions"] = versions(("torch", "transformers", "peft", "bitsandbytes"))
            DATA.parent.mkdir(parents=True, exist_ok=True)
            DATA.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            print(f"{key}: {outcome}", flush=True)


def try_cell(recipe: str, tuner: str, base: Path, scratch: Path) -> dict[str, Any]:
    """What came of each trial: ``yes``, or why not; trials that an earlier one makes pointless are left out."""
    outcome: dict[str, Any] = {}
    trials = {"trains": whole, "resumes": broken_off, "reads_back": read_back, "merges": merge}
    for name, trial in trials.items():
        if name == "merges" and not _merges(tuner):
            continue
        try:
            outcome[name] = trial(recipe, tuner, base, scratch)
        except Exception as error:  # noqa: BLE001  # whatever stands against it is the outcome
            traceback.print_exc()
            outcome[name] = f"{type(error).__name__}: {error}".strip()[:300]
        if outcome[name] != "yes" and name == "trains":
            break
    return outcome


def _whole_model(tuner: str) -> bool:
    from martlet_trainer.tuners.kinds import KINDS

    return KINDS[_kind(tuner)].whole_model


def _merges(tuner: str) -> bool:
    """Whether its results are adapters that weights can hold."""
    from martlet_trainer.tuners.kinds import KINDS

    kind = KINDS[_kind(tuner)]
    return not (kind.whole_model or kind.unmergeable)


def _kind(tuner: str) -> str:
    return str(VARIANTS.get(tuner, {"kind": tuner})["kind"])


def spec_of(recipe: str, tuner: str) -> dict[str, Any]:
    """The spec of a cell."""
    from martlet_trainer.testing_cases import RECIPE_OPTIONS, SMALL_OPTIONS, SMALL_RATES

    kind = VARIANTS.get(tuner, {"kind": tuner})
    numbers = {"max_steps": STEPS, "per_device_batch_size": 4, "precision": "float32", **NUMBERS.get(tuner, {})}
    return {
        "recipe": recipe,
        "recipe_options": dict(RECIPE_OPTIONS.get(recipe, {})),
        "base_model": "tiny",
        "training_dataset": "artifacts/rows",
        "tuner": {"options": dict(SMALL_OPTIONS.get(tuner, {})), **kind},
        "hyperparameters": {**numbers, "learning_rate": {**SMALL_RATES, **_RATES}.get(tuner, 1e-2)},
        "resources": {"device": "cpu"},
    }


def train(recipe: str, tuner: str, workdir: Path, base: Path, *, stop_at: int = 0, resume: Path | None = None) -> Any:
    """One training, and what it reported."""
    from martlet_trainer import testing, testing_cases
    from martlet_trainer.recipes.training import run

    teacher = base.parent / "teacher" if recipe == "distill" else None
    testing.lay_out(workdir, base, testing_cases.recipe_rows(recipe, 16), teacher=teacher, resume=resume)
    report = testing.Recorder()
    stop = (lambda: len(report.losses) >= stop_at) if stop_at else (lambda: False)
    return run(spec_of(recipe, tuner), workdir, report, stop), report


def whole(recipe: str, tuner: str, base: Path, scratch: Path) -> str:
    """A training whose loss falls."""
    _, report = train(recipe, tuner, scratch / "whole", base)
    name = "reward" if recipe in ("grpo", "rloo") else "loss"
    values = [report.steps[step][name] for step in sorted(report.steps)]
    first, last = statistics.mean(values[:4]), statistics.mean(values[-4:])
    better = last > first if name == "reward" else last < first
    return "yes" if better else f"the {name} went from {first:.3f} to {last:.3f}"


def broken_off(recipe: str, tuner: str, base: Path, scratch: Path) -> str:
    """The same, stopped and gone on with: the same weights, byte by byte."""
    from martlet_core.recipe import StopRequested

    half = STEPS // 2
    try:
        train(recipe, tuner, scratch / "half", base, stop_at=half)
    except StopRequested:
        pass
    else:
        return "it didn't stop"
    train(recipe, tuner, scratch / "rest", base, resume=scratch / "half" / "checkpoints" / f"step-{half}")
    name = "model.safetensors" if _whole_model(tuner) else "adapter_model.safetensors"
    found = {(scratch / part / "output/model" / name).read_bytes() for part in ("whole", "rest")}
    return "yes" if len(found) == 1 else "other weights than without a stop"


def read_back(recipe: str, tuner: str, base: Path, scratch: Path) -> str:
    """By peft or transformers; it must say something else than the base model."""
    import torch

    result = scratch / "whole/output/model"
    bare, tuned = _said(base, result, tuned=False), _said(base, result, tuned=True, whole_model=_whole_model(tuner))
    if not torch.isfinite(tuned).all():
        return "its outputs aren't finite"
    tuned = tuned[:, -bare.shape[1] :]  # behind virtual tokens
    return "yes" if (tuned - bare).norm() > 1e-3 * bare.norm() else "it changes nothing"


def _said(base: Path, result: Path, *, tuned: bool, whole_model: bool = False) -> Any:
    """Logits, or states, of the base model with a head like the result's, or of the result."""
    import torch
    from martlet_trainer.training.heads import head_in
    from martlet_trainer.training.models import load_model
    from martlet_trainer.tuners.bottleneck import load_bottlenecks
    from martlet_trainer.tuners.continued import own_adapter_config
    from peft import PeftModel

    head = head_in(result)
    torch.manual_seed(0)  # of a head that the base model lacks
    model = load_model(result if tuned and whole_model else base, torch.float32, torch.device("cpu"), head=head)
    if tuned and not whole_model:
        own = own_adapter_config(result)
        model = load_bottlenecks(model, result) if own else PeftModel.from_pretrained(model, result)
    with torch.no_grad():
        found = model.eval()(torch.tensor([[1, 9, 40, 41, 42, 43, 2, 1, 10, 44, 45]]))
    return found.last_hidden_state if head.task == "embedding" else found.logits


def merge(recipe: str, tuner: str, base: Path, scratch: Path) -> str:
    """The recipe ``merge``, which compares log-probabilities itself."""
    from martlet_trainer import testing
    from martlet_trainer.recipes import merge as merging

    inputs = scratch / "merge" / "inputs"
    inputs.mkdir(parents=True)
    (inputs / "base_model").symlink_to(base)  # QLoRA's goes into the unquantized model, as users do it
    (inputs / "adapter").symlink_to(scratch / "whole/output/model")
    values = {"adapter": "ft:a", "base_model": "tiny", "max_logprob_difference": 0.02}
    merging.run(values, scratch / "merge", testing.Recorder(), lambda: False)
    return "yes"


if __name__ == "__main__":
    main()
