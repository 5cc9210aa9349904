"""Does every recipe learn? SmolLM2-135M with LoRA on real data, measured on held-out rows before and after.

    python benchmarks/recipes.py [--only RECIPE...] [--steps 40]

The recipes are called as the worker calls them, as functions on a working directory, in the trainer's environment. Data: headlines
(``sft``), and the demonstration sets that LLaMA-Factory's package carries: web texts (``pretrain``), preferences, verdicts. Rows that are
short enough to train on a CPU are taken in order; the last ones are held out. "Before" is the same recipe's validation after one step with a
learning rate of next to nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import ROOT, machine, versions_in, write
from headlines import DATA as HEADLINES
from headlines import MODEL, MODEL_DIRECTORY, TRAINER_PYTHON, prepare_model, prepare_rows

RESULTS = ROOT / "benchmarks" / "results" / "recipes.json"
DATA = ROOT / ".martlet" / "examples" / "llamafactory"
PACKAGE = "llamafactory==0.9.5"
SHA256 = "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f"
_LONGEST = 2500  # characters of a row
_FEWEST = 60  # rows: fewer held-out ones tell nothing


@dataclass(frozen=True)
class Case:
    """What a recipe is tried on.

    Attributes:
        file: rows, as the package names them; empty for the headlines.
        measures: held-out numbers that tell whether it learned: name -> whether more is better.
        rate: peak learning rate.
        rows: rows to train on; a third as many are held out.
        batch: rows a step.
    """

    file: str
    measures: Mapping[str, bool]
    rate: float
    rows: int = 96
    batch: int = 4


_PAIRS = {"valid_reward_margin": True, "valid_reward_accuracy": True}
CASES = {
    "sft": Case("", {"valid_loss": False, "valid_token_accuracy": True}, 2e-4, rows=384, batch=8),
    "pretrain": Case("c4_demo.jsonl", {"valid_loss": False}, 2e-4),
    "dpo": Case("dpo_en_demo.json", _PAIRS, 1e-4),
    "orpo": Case("dpo_en_demo.json", _PAIRS, 2e-4),
    "cpo": Case("dpo_en_demo.json", _PAIRS, 1e-4),
    "simpo": Case("dpo_en_demo.json", _PAIRS, 1e-4),
    "kto": Case("kto_en_demo.json", {"valid_good_reward": True, "valid_bad_reward": False}, 2e-4),
}


def main() -> None:
    """Be the benchmark, or one training of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each training (default 40)")
    parser.add_argument("--train", metavar="SPEC", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(train(json.loads(arguments.train))))
        return
    prepare_model()
    prepare_rows()
    fetch()
    record: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"recipes": {}}
    before = machine()
    for recipe in arguments.only:
        record["recipes"][recipe] = measure(recipe, arguments.steps)
        record |= {
            "model": MODEL,
            "machine": before,
            "versions": versions_in(TRAINER_PYTHON, ["torch", "transformers", "peft"]),
        }
        write(RESULTS, record)


def measure(recipe: str, steps: int) -> dict[str, Any]:
    """Train, and compare the held-out numbers with those of a training that moved nothing."""
    case = CASES[recipe]
    with tempfile.TemporaryDirectory(prefix="martlet-bench-") as scratch:
        rows = read(case)
        held_out = len(rows) // 4
        sides = {}
        for side, count, rate in (("before", 1, 1e-12), ("after", steps, case.rate)):
            workdir = Path(scratch) / side
            lay_out(workdir, rows[:-held_out], rows[-held_out:])
            spec = {
                "recipe": recipe,
                "base_model": MODEL,
                "training_dataset": "artifacts/rows",
                "validation_dataset": "artifacts/heldout",
                "tuner": {"lora_rank": 16},
                "hyperparameters": {"max_steps": count, "per_device_batch_size": case.batch, "learning_rate": rate},
                "data": {"max_length": 512},
                "resources": {"device": "cpu"},
            }
            command = [str(TRAINER_PYTHON), __file__, "--train", json.dumps({"spec": spec, "workdir": str(workdir)})]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            sides[side] = json.loads(done.stdout.splitlines()[-1])
    found = {
        "rows": len(rows) - held_out,
        "held_out_rows": held_out,
        "steps": steps,
        "learning_rate": case.rate,
        "seconds": round(sides["after"]["train_seconds"], 1),
        "measures": {
            name: {
                "before": round(sides["before"]["metrics"][name], 4),
                "after": round(sides["after"]["metrics"][name], 4),
                "more_is_better": more,
            }
            for name, more in case.measures.items()
        },
    }
    told = ", ".join(f"{name} {row['before']:.3f} -> {row['after']:.3f}" for name, row in found["measures"].items())
    print(f"{recipe:9} {told} ({found['seconds']:.0f} s)", flush=True)
    return found


def read(case: Case) -> list[Any]:
    """The case's rows: a quarter of them will be held out."""
    path = DATA / case.file if case.file else HEADLINES / "train.jsonl"
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    short = [row for row in rows if len(json.dumps(row)) <= _LONGEST]
    if len(short) < _FEWEST:
        raise SystemExit(f"{case.file}: {len(short)} rows are short enough, fewer than {_FEWEST}")
    return short[: case.rows * 4 // 3]


def lay_out(workdir: Path, rows: list[Any], held_out: list[Any]) -> None:
    """A working directory as the worker makes it."""
    for name, part in (("training_dataset", rows), ("validation_dataset", held_out)):
        directory = workdir / "inputs" / name
        directory.mkdir(parents=True)
        (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (workdir / "inputs" / "base_model").symlink_to(MODEL_DIRECTORY)


def train(question: Mapping[str, Any]) -> dict[str, Any]:
    """One training, in the trainer's environment."""
    from martlet_trainer.recipes.training import run
    from martlet_trainer.testing import Recorder

    spec = question["spec"]
    result = run(spec, Path(question["workdir"]), Recorder(), lambda: False)
    return {"metrics": result.values["metrics"], "train_seconds": result.values["train_seconds"]}


def fetch() -> None:
    """The demonstration sets, once; the package is read, never installed."""
    files = {case.file for case in CASES.values() if case.file}
    if all((DATA / name).is_file() for name in files):
        return
    DATA.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        pip = ["-m", "pip", "download", "--no-deps", "--no-input", "--quiet", "--no-binary", "llamafactory"]
        subprocess.run([str(TRAINER_PYTHON), *pip, "--dest", scratch, PACKAGE], check=True)
        archive = next(Path(scratch).glob("*.tar.gz"))
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SHA256:
            raise SystemExit(f"{archive.name} has sha256 {found}, expected {SHA256}")
        with tarfile.open(archive) as inside:
            for name in files:
                member = inside.extractfile(f"{archive.name.removesuffix('.tar.gz')}/data/{name}")
                assert member is not None
                (DATA / name).write_bytes(member.read())


if __name__ == "__main__":
    main()
