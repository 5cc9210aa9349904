"""Does every recipe learn? SmolLM2-135M, or MiniLM, with LoRA on real data, measured on held-out rows before and after.

    python benchmarks/recipes.py [--only RECIPE...]
    python benchmarks/recipes.py --tuners [TUNER...]     the recipe sft with every tuner of docs/support/methods.md, or with those

The recipes are called as the worker calls them, as functions on a working directory, in the trainer's environment. Data
(``recipe_data.py``): headlines and their labels for what learns from answers, preferences or verdicts; web texts for ``pretrain``; sums of
reasoning-gym for what learns from rewards; named entities, and instructions with their answers, for what ends in a head (``head_data.py``),
which MiniLM learns. "Before" is the same recipe's validation after one step with a learning rate of next to nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from environment import ROOT, machine, versions_in, write
from head_data import (
    ENCODER,
    ENCODER_DIRECTORY,
    instruction_lists,
    instruction_pairs,
    labelled_headlines,
    prepare_encoder,
    tagged_sentences,
)
from headlines import MODEL, MODEL_DIRECTORY, TRAINER_PYTHON, prepare_model
from methods_page import NUMBERS, TUNERS, VARIANTS
from recipe_data import EXAMPLES, Parts, demonstrations, headline_pairs, headline_verdicts, headlines, sums

RESULTS = ROOT / "benchmarks" / "results" / "recipes.json"


@dataclass(frozen=True)
class Case:
    """What a recipe is tried on.

    Attributes:
        rows: reads them.
        measures: held-out numbers that tell whether it learned: name -> whether more is better.
        rate: peak learning rate.
        steps: optimizer steps.
        batch: rows a step.
        held_out: held-out rows that are looked at.
        options: the recipe's.
        encoder: MiniLM is trained, not SmolLM2.
        teacher: the recipe whose result teaches; none if empty.
        max_length: tokens of a row, or of a text of it.
    """

    rows: Callable[[], Parts]
    measures: Mapping[str, bool]
    rate: float
    steps: int = 60
    batch: int = 8
    held_out: int = 128
    options: Mapping[str, Any] = field(default_factory=dict)
    encoder: bool = False
    teacher: str = ""
    max_length: int = 512


_PAIRS = {"valid_reward_margin": True, "valid_reward_accuracy": True}
_ANSWERS = {
    "rewards": [{"name": "accuracy"}],
    "num_generations": 8,
    "max_completion_length": 32,
    "temperature": 1.0,
}
#: Half of the batches are answered by the model itself.
_TAUGHT = {"teacher_model": MODEL, "lmbda": 0.5, "max_completion_length": 8}
CASES = {
    "sft": Case(headlines, {"valid_loss": False, "valid_token_accuracy": True}, 2e-4),
    "pretrain": Case(partial(demonstrations, "c4_demo.jsonl"), {"valid_loss": False}, 2e-4, steps=40, held_out=32),
    "dpo": Case(headline_pairs, _PAIRS, 1e-4),
    "orpo": Case(headline_pairs, _PAIRS, 2e-4),
    "cpo": Case(headline_pairs, _PAIRS, 1e-4),
    "simpo": Case(headline_pairs, _PAIRS, 1e-4),
    # Rows of one answer each say less than pairs: both answers gain at first, since the model is taught the form of either.
    "kto": Case(headline_verdicts, {"valid_reward_margin": True}, 2e-4, steps=120),
    "grpo": Case(sums, {"valid_reward": True}, 1e-4, steps=40, batch=4, held_out=32, options=_ANSWERS),
    "sequence_classification": Case(
        labelled_headlines, {"valid_accuracy": True, "valid_macro_f1": True}, 1e-3, steps=80, encoder=True
    ),
    "token_classification": Case(tagged_sentences, {"valid_f1": True}, 1e-3, steps=80, encoder=True),
    "embedding": Case(
        instruction_pairs,
        {"valid_recall_at_1": True, "valid_mrr": True},
        3e-4,
        batch=16,
        held_out=240,
        encoder=True,
        max_length=128,  # half of what MiniLM was made for; longer texts take minutes a step on two cores
    ),
    "reranker": Case(
        instruction_lists, {"valid_accuracy": True, "valid_mrr": True}, 1e-3, encoder=True, max_length=128
    ),
    "reward": Case(headline_pairs, _PAIRS, 1e-4),
    "distill": Case(headlines, {"valid_loss": False}, 2e-4, options=_TAUGHT, teacher="sft"),
    "rloo": Case(sums, {"valid_reward": True}, 1e-4, steps=40, batch=4, held_out=32, options=_ANSWERS),
}
#: Optimizer steps of each tuner's training.
TUNER_STEPS = 30

#: Options of tuners whose defaults don't fit SmolLM2's 30 layers.
_OPTIONS: Mapping[str, Mapping[str, Any]] = {"llamapro": {"num_new_blocks": 5}}


def main() -> None:
    """Be the benchmark, or one training of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), default=list(CASES))
    parser.add_argument(
        "--tuners", nargs="*", choices=list(TUNERS), metavar="TUNER", help="all of them if none is named"
    )
    parser.add_argument("--train", metavar="SPEC", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(train(json.loads(arguments.train))))
        return
    if not all(CASES[recipe].encoder for recipe in arguments.only):
        prepare_model()
    if any(CASES[recipe].encoder for recipe in arguments.only):
        prepare_encoder()
    before = machine()
    todo = [("recipes", name) for name in arguments.only]
    if arguments.tuners is not None:
        todo = [("tuners", name) for name in arguments.tuners or TUNERS]
    for part, name in todo:
        found = measure(name) if part == "recipes" else measure("sft", name)
        # Read anew each time: another run of this may have added its own.
        record: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"recipes": {}}
        record.setdefault(part, {})[name] = found
        record |= {
            "machine": before,
            "versions": versions_in(TRAINER_PYTHON, ["torch", "transformers", "peft"]),
        }
        write(RESULTS, record)


def measure(recipe: str, tuner: str = "") -> dict[str, Any]:
    """Train, and compare the held-out numbers with those of a training that moved nothing.

    Args:
        recipe: by name.
        tuner: by its name on the page of methods, with its own default learning rate; LoRA of rank 16 if empty.
    """
    case = CASES[recipe]
    steps = TUNER_STEPS if tuner else case.steps
    before = untouched(recipe)
    own = {} if tuner else {"learning_rate": case.rate}
    after = trained(recipe, tuner, {"max_steps": steps, **own, **NUMBERS.get(tuner, {})})
    found = {
        "model": ENCODER if case.encoder else MODEL,
        "rows": after["rows"],
        "held_out_rows": after["held_out_rows"],
        "steps": steps,
        "batch": case.batch,
        "learning_rate": after["learning_rate"],
        "seconds": round(after["train_seconds"], 1),
        "measures": {
            name: {
                "before": round(before["metrics"][name], 4),
                "after": round(after["metrics"][name], 4),
                "more_is_better": more,
            }
            for name, more in case.measures.items()
        },
    }
    if recipe == "sequence_classification":
        found["majority_accuracy"] = after["majority_accuracy"]
    told = ", ".join(f"{name} {row['before']:.3f} -> {row['after']:.3f}" for name, row in found["measures"].items())
    print(f"{tuner or recipe:9} {told} ({found['seconds']:.0f} s)", flush=True)
    return found


@cache
def untouched(recipe: str) -> dict[str, Any]:
    """What held-out rows say of the untrained model: the recipe's own validation, after a step that moves nothing."""
    return trained(recipe, "", {"max_steps": 1, "learning_rate": 1e-12})


def teacher(recipe: str) -> Path:
    """The result of a recipe's case, made once."""
    kept = EXAMPLES / "teachers" / recipe
    if not kept.is_dir():
        trained(recipe, "", {"max_steps": CASES[recipe].steps, "learning_rate": CASES[recipe].rate}, kept)
    return kept


def trained(recipe: str, tuner: str, numbers: Mapping[str, Any], kept: Path | None = None) -> dict[str, Any]:
    """One training in a process of its own, and what it measured.

    Args:
        recipe: by name.
        tuner: as ``measure`` has it.
        numbers: its hyperparameters, beside the batch.
        kept: where its result is put; nowhere for None.
    """
    case = CASES[recipe]
    kind = VARIANTS.get(tuner, {"kind": tuner}) if tuner else {"lora_rank": 16}
    rows, held_out = case.rows()
    held_out = held_out[: case.held_out]
    with tempfile.TemporaryDirectory(prefix="martlet-bench-") as scratch:
        workdir = Path(scratch) / "work"
        lay_out(workdir, rows, held_out, ENCODER_DIRECTORY if case.encoder else MODEL_DIRECTORY)
        if case.teacher:
            (workdir / "inputs" / "teacher_model").symlink_to(MODEL_DIRECTORY)
            (workdir / "inputs" / "teacher_adapter").symlink_to(teacher(case.teacher))
        spec = {
            "recipe": recipe,
            "recipe_options": dict(case.options),
            "base_model": ENCODER if case.encoder else MODEL,
            "training_dataset": "artifacts/rows",
            "validation_dataset": "artifacts/heldout",
            "tuner": {"options": _OPTIONS.get(tuner, {}), **kind},
            "hyperparameters": {"per_device_batch_size": case.batch, **numbers},
            "data": {"max_length": case.max_length},
            "resources": {"device": "cpu"},
        }
        command = [str(TRAINER_PYTHON), __file__, "--train", json.dumps({"spec": spec, "workdir": str(workdir)})]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        if kept is not None:
            shutil.copytree(workdir / "output" / "model", kept)
    found = {**json.loads(done.stdout.splitlines()[-1]), "rows": len(rows), "held_out_rows": len(held_out)}
    if recipe == "sequence_classification":
        counts = Counter(row["label"] for row in held_out)
        found["majority_accuracy"] = round(max(counts.values()) / len(held_out), 4)
    return found


def lay_out(workdir: Path, rows: list[Any], held_out: list[Any], base_model: Path) -> None:
    """A working directory as the worker makes it."""
    for name, part in (("training_dataset", rows), ("validation_dataset", held_out)):
        directory = workdir / "inputs" / name
        directory.mkdir(parents=True)
        (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (workdir / "inputs" / "base_model").symlink_to(base_model)


def train(question: Mapping[str, Any]) -> dict[str, Any]:
    """One training, in the trainer's environment."""
    from martlet_trainer.recipes.training import run
    from martlet_trainer.testing import Recorder

    spec = question["spec"]
    result = run(spec, Path(question["workdir"]), Recorder(), lambda: False)
    return {
        "metrics": result.values["metrics"],
        "train_seconds": result.values["train_seconds"],
        "learning_rate": result.values["resolved_config"]["hyperparameters"]["learning_rate"],
    }


if __name__ == "__main__":
    main()
