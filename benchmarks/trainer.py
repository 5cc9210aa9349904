"""The trainer's sft recipe against a bare TRL script that does the same work: tokens a second and peak memory.

    python benchmarks/trainer.py [--steps 12] [--rounds 3]

Same model (SmolLM2-135M), rows, batches, LoRA, arithmetic and threads; each side in a process of its own, in alternating order. Timed are
optimizer steps from the third on, on the wall clock and in CPU seconds (which other work on the machine disturbs less). Tokens are those
of the rows, padding not counted, and the same on both sides. Two workloads: ``classify`` has one-word answers and a system message that all
rows share; ``write`` has no system message of its own and answers as long as the headlines are.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from environment import ROOT, machine, write
from headlines import DATA, LORA_RANK, MODEL, MODEL_DIRECTORY, TRAINER_PYTHON, prepare_model, prepare_rows

RESULTS = ROOT / "benchmarks" / "results" / "trainer.json"
BATCH_SIZE, LEARNING_RATE, WARM_STEPS = 16, 1e-3, 2
WORKLOADS = ("classify", "write")


def main() -> None:
    """Run it, print the table, write the JSON; or, with --side, be one of the two processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=12, help="optimizer steps a run, the first two not timed (default 12)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts (default 3)")
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](options.rows, options.steps)))
        return
    prepare_model()
    prepare_rows()
    measured: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for workload in WORKLOADS:
            rows = write_rows(Path(scratch) / workload, workload, options.steps * BATCH_SIZE)
            sides = measured[workload] = {name: [] for name in SIDES}
            for number in range(options.rounds):
                for name in sorted(SIDES, reverse=bool(number % 2)):
                    sides[name].append(run_side(name, rows, options.steps))
    report(measured, options.steps, options.rounds)


def write_rows(directory: Path, workload: str, count: int) -> Path:
    """Real headlines as chat rows."""
    directory.mkdir()
    source = [json.loads(line) for line in (DATA / "train.jsonl").read_text().split("\n") if line][:count]
    if workload == "write":
        for row in source:
            _, headline, answer = row["messages"]
            kind = "sarcastic" if answer["content"] == "yes" else "serious"
            row["messages"] = [
                {"role": "user", "content": f"Write a {kind} headline."},
                {"role": "assistant", "content": headline["content"]},
            ]
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in source))
    return path


def run_side(name: str, rows: Path, steps: int) -> dict[str, float]:
    """One process; what it measured of itself."""
    command = [str(TRAINER_PYTHON), __file__, "--side", name, "--rows", str(rows), "--steps", str(steps)]
    # Waiting threads sleep on both sides alike; two processes' worth of spinning threads would measure the scheduler.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
    values = json.loads(done.stdout.strip().split("\n")[-1])
    print(
        f"  {rows.parent.name} {name}: {values['tokens_per_second']:.0f} tokens/s, {values['peak_memory_mb']:.0f} MB",
        flush=True,
    )
    return values


class StepClock:
    """Notes when steps end."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        """A step has ended."""
        self._marks.append((time.perf_counter(), time.process_time()))

    def values(self, tokens_per_row: float) -> dict[str, float]:
        """Rates over the timed steps, and the process's peak memory."""
        first, last = self._marks[WARM_STEPS - 1], self._marks[-1]
        tokens = (len(self._marks) - WARM_STEPS) * BATCH_SIZE * tokens_per_row
        return {
            "tokens_per_second": tokens / (last[0] - first[0]),
            "tokens_per_cpu_second": tokens / (last[1] - first[1]),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def run_recipe(rows: Path, steps: int) -> dict[str, Any]:
    """Our side: the recipe as the worker runs it, less the worker."""
    from martlet_trainer.recipes.training import run

    clock = StepClock()

    class Report:
        def phase(self, name: str) -> None: ...
        def log(self, message: str, level: str = "info") -> None: ...
        def checkpoint(self, *_: Any, **__: Any) -> None: ...
        def partial_result(self, values: Any) -> None: ...
        def metrics(self, *_: Any, **__: Any) -> None:
            clock.mark()

    with tempfile.TemporaryDirectory() as directory:
        inputs = Path(directory) / "inputs"
        inputs.mkdir()
        (inputs / "base_model").symlink_to(MODEL_DIRECTORY)
        (inputs / "training_dataset").symlink_to(rows.parent)
        spec = {
            "base_model": MODEL,
            "training_dataset": "artifacts/bench",
            "tuner": {"lora_rank": LORA_RANK, "lora_alpha": 2 * LORA_RANK},
            "hyperparameters": {
                "max_steps": steps,
                "per_device_batch_size": BATCH_SIZE,
                "learning_rate": LEARNING_RATE,
                "precision": "float32",
            },
            "resources": {"device": "cpu"},
        }
        result = run(spec, Path(directory), Report(), lambda: False)
    data = result.values["training_data"]
    return {
        **clock.values(data["tokens"] / data["rows_used"]),
        "tokens_per_row": data["tokens"] / data["rows_used"],
        "last_loss": result.values["metrics"]["train_loss"],
    }


def run_trl(rows: Path, steps: int) -> dict[str, Any]:
    """The bare side: what one writes with TRL for the same work. Loss on the answers only, as on our side."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    clock = StepClock()

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.mark()

    chats = [json.loads(line)["messages"] for line in rows.read_text().split("\n") if line]
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    with tempfile.TemporaryDirectory() as directory:
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY, dtype=torch.float32),
            SFTConfig(
                output_dir=directory,
                max_steps=steps,
                per_device_train_batch_size=BATCH_SIZE,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="cosine",
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats]),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[Clock()],
        )
        trainer.train()
    # The recipe leaves out what follows the last trained token (a line break); tokens are counted its way on both sides.
    lengths = [len(tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]) - 1 for chat in chats]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        **clock.values(statistics.mean(lengths)),
        "tokens_per_row": statistics.mean(lengths),
        "last_loss": losses[-1],
    }


SIDES = {"martlet": run_recipe, "trl": run_trl}


def report(measured: dict[str, dict[str, list[dict[str, float]]]], steps: int, rounds: int) -> None:
    """Print the table and write the JSON."""
    print(
        f"SmolLM2-135M, LoRA r={LORA_RANK} on all linear layers, float32, batches of {BATCH_SIZE} rows; median of {rounds} rounds"
    )
    print(f"{'':10} {'tokens/s':>20} {'tokens/CPU-s':>20} {'peak MB':>16}")
    print(f"{'':10} {'martlet  trl  ratio':>20} {'martlet  trl  ratio':>20} {'martlet  trl  ratio':>20}")
    summary: dict[str, Any] = {}
    for workload, sides in measured.items():
        median = {
            side: {key: statistics.median(values[key] for values in runs) for key in runs[0]}
            for side, runs in sides.items()
        }
        ratio = {key: median["martlet"][key] / median["trl"][key] for key in median["trl"]}
        summary[workload] = {
            "median": median,
            "ratio": {key: round(value, 3) for key, value in ratio.items()},
            "runs": sides,
        }
        cells = [
            f"{median['martlet'][key]:7.0f} {median['trl'][key]:5.0f} {ratio[key]:6.2f}"
            for key in ("tokens_per_second", "tokens_per_cpu_second", "peak_memory_mb")
        ]
        print(f"{workload:10} " + " ".join(cells))
    print("aims: tokens/s ratio >= 1.0, peak memory ratio <= 1.02")
    versions = subprocess.run([str(TRAINER_PYTHON), "-c", _VERSIONS], capture_output=True, text=True, check=True).stdout
    record = {
        "steps": steps,
        "rounds": rounds,
        "workloads": summary,
        "machine": machine(),
        "versions": json.loads(versions),
    }
    write(RESULTS, record)


_VERSIONS = (
    "import json; from importlib.metadata import version as v; "
    "print(json.dumps({n: v(n) for n in ('torch', 'transformers', 'trl', 'peft', 'accelerate')}))"
)


if __name__ == "__main__":
    main()
