"""The trainer's sft recipe against a bare TRL script, ms-swift and LLaMA-Factory on the same work: tokens a second and peak memory.

    python benchmarks/trainer.py [--steps 12] [--rounds 3] [--against trl ms-swift llamafactory] [--precision float32]

ms-swift and LLaMA-Factory are installed from PyPI on first use, each in an environment of its own (``trainer_peers.py``). Same model
(SmolLM2-135M), rows, batches, LoRA, arithmetic and threads; each side in a process of its own, in alternating order. Timed are optimizer
steps from the third on, on the wall clock and in CPU seconds (which other work on the machine disturbs less). Tokens are those of the
rows, padding not counted, and the same on all sides. Two workloads: ``classify`` has one-word answers, ``write`` answers as long as the
headlines are; all rows of each share a system message. In bfloat16 all sides hold the base model in it and the adapter in float32, and
compute under autocast; the figures then are those of ``trainer_bfloat16``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from environment import ROOT, in_turn, machine, medians, told_by, versions_in, write
from headlines import DATA, LORA_RANK, MODEL, MODEL_DIRECTORY, TRAINER_PYTHON, prepare_model, prepare_rows
from step_clock import StepClock

RESULTS = {
    "float32": ROOT / "benchmarks" / "results" / "trainer.json",
    "bfloat16": ROOT / "benchmarks" / "results" / "trainer_bfloat16.json",
}
PRECISIONS = tuple(RESULTS)
BATCH_SIZE, LEARNING_RATE, MAX_LENGTH = 16, 1e-3, 2048
WORKLOADS = ("classify", "write")
#: What the model's template says to rows without a system message; written out, since the peers' templates say nothing.
_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
#: Peers that need an environment of their own, by what pip installs for them.
PEERS = {"ms-swift": "ms-swift==4.6.0", "llamafactory": "llamafactory==0.9.5"}
_TORCH = "torch==2.13.0"
#: Numbers of which ratios are told.
COMPARED = ("rows_per_second", "tokens_per_second", "tokens_per_cpu_second", "peak_memory_mb")


def main(precision: str = "float32") -> None:
    """Run it, print the table, write the JSON; or, with --side, be one of the processes.

    Args:
        precision: that of all sides unless the command line has another.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=12, help="optimizer steps a run, the first two not timed (default 12)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts (default 3)")
    others = ("trl", *PEERS)
    parser.add_argument("--against", nargs="+", choices=others, default=list(others), help="default: all")
    parser.add_argument("--precision", choices=PRECISIONS, default=precision)
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](options.rows, options.steps, options.precision)))
        return
    for peer in PEERS:
        if peer in options.against:
            prepare_peer(peer)
    before = machine()
    measured: dict[str, dict[str, list[dict[str, float]]]] = {}
    for workload, rows in workloads(options.steps):
        sides = measured[workload] = {name: [] for name in ("martlet", *options.against)}
        for _, name in in_turn(sides, options.rounds):
            tokens = sides["martlet"][0]["tokens_per_row"] if sides["martlet"] else 0.0
            sides[name].append(run_side(name, rows, options.steps, options.precision, tokens))
    report(measured, options.steps, options.rounds, options.precision, before)


def prepare_peer(peer: str) -> None:
    """Its environment, made on first use."""
    from martlet_cli.pip_config import base_python, pip_options, uv_environment  # which the sides' interpreters lack

    python = peer_python(peer)
    if python.exists() and not subprocess.run([str(python), "-c", "import peft"], capture_output=True).returncode:
        return
    print(f"installing {PEERS[peer]} into {python.parents[1]} (once)", flush=True)
    uv, sources = str(ROOT / ".martlet/envs/cli/bin/uv"), uv_environment(pip_options(base_python()), os.environ)
    subprocess.run([uv, "venv", "--quiet", "--python", base_python(), str(python.parents[1])], env=sources, check=True)
    into = ["--quiet", "--python", str(python)]
    subprocess.run([uv, "pip", "install", *into, _TORCH, PEERS[peer]], env=sources, check=True)
    # PyPI has these for CUDA alone; beside a torch for CPUs they can't be loaded, and take transformers' import down with them.
    if "+cpu" in versions_in(python, ["torch"])["torch"]:
        subprocess.run([uv, "pip", "uninstall", *into, "torchvision", "torchaudio"], check=True)


def peer_python(peer: str) -> Path:
    """The interpreter of its environment."""
    return ROOT / ".martlet" / "envs" / f"bench-{peer}" / "bin" / "python"


def workloads(steps: int) -> Iterator[tuple[str, Path]]:
    """Each workload and the file of its rows, which is there until the last one is done; the model is fetched first."""
    prepare_model()
    prepare_rows()
    with tempfile.TemporaryDirectory() as scratch:
        for workload in WORKLOADS:
            yield workload, write_rows(Path(scratch) / workload, workload, steps * BATCH_SIZE)


def write_rows(directory: Path, workload: str, count: int) -> Path:
    """Real headlines as chat rows."""
    directory.mkdir()
    source = [json.loads(line) for line in (DATA / "train.jsonl").read_text().split("\n") if line][:count]
    if workload == "write":
        for row in source:
            _, headline, answer = row["messages"]
            kind = "sarcastic" if answer["content"] == "yes" else "serious"
            row["messages"] = [
                {"role": "system", "content": _SYSTEM},
                {"role": "user", "content": f"Write a {kind} headline."},
                {"role": "assistant", "content": headline["content"]},
            ]
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in source))
    return path


def run_side(name: str, rows: Path, steps: int, precision: str, tokens_per_row: float) -> dict[str, float]:
    """One process; what it measured of itself."""
    if name in PEERS:
        work = {
            "model": str(MODEL_DIRECTORY),
            "rows": str(rows),
            "steps": steps,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "lora_rank": LORA_RANK,
            "max_length": MAX_LENGTH,
            "tokens_per_row": tokens_per_row,
            "precision": precision,
        }
        file = rows.with_name("work.json")
        file.write_text(json.dumps(work))
        command = [str(peer_python(name)), str(Path(__file__).with_name("trainer_peers.py")), name, str(file)]
    else:
        told = ["--side", name, "--rows", str(rows), "--steps", str(steps), "--precision", precision]
        command = [str(TRAINER_PYTHON), __file__, *told]
    values = told_by(command, TRL_EXPERIMENTAL_SILENCE="1")
    print(
        f"  {rows.parent.name} {name}: {values['tokens_per_second']:.0f} tokens/s, {values['peak_memory_mb']:.0f} MB",
        flush=True,
    )
    return values


def run_recipe(rows: Path, steps: int, precision: str = "float32") -> dict[str, Any]:
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
                "precision": precision,
            },
            "resources": {"device": "cpu"},
        }
        result = run(spec, Path(directory), Report(), lambda: False)
    data = result.values["training_data"]
    return {
        **clock.values(BATCH_SIZE, data["tokens"] / data["rows_used"]),
        "tokens_per_row": data["tokens"] / data["rows_used"],
        "last_loss": result.values["metrics"]["train_loss"],
    }


def run_trl(rows: Path, steps: int, precision: str = "float32") -> dict[str, Any]:
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
            AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY, dtype=getattr(torch, precision)),
            SFTConfig(
                output_dir=directory,
                max_steps=steps,
                per_device_train_batch_size=BATCH_SIZE,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="linear",
                warmup_steps=0.03,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                bf16=precision == "bfloat16",
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
        **clock.values(BATCH_SIZE, statistics.mean(lengths)),
        "tokens_per_row": statistics.mean(lengths),
        "last_loss": losses[-1],
    }


SIDES = {"martlet": run_recipe, "trl": run_trl}


def report(
    measured: dict[str, dict[str, list[dict[str, float]]]],
    steps: int,
    rounds: int,
    precision: str,
    before: dict[str, Any],
) -> None:
    """Print the table and write the JSON."""
    print(
        f"SmolLM2-135M, LoRA r={LORA_RANK} on all linear layers, {precision}, batches of {BATCH_SIZE} rows; median of {rounds} rounds"
    )
    print(
        f"{'':10} {'':13} {'rows/s':>8} {'tokens/s':>9} {'tokens/CPU-s':>13} {'peak MB':>8}   martlet's ratio of tokens/s, of memory"
    )
    summary: dict[str, Any] = {}
    for workload, sides in measured.items():
        median = medians(sides)
        ours = median["martlet"]
        ratios = {
            side: {key: round(ours[key] / theirs[key], 3) for key in COMPARED}
            for side, theirs in median.items()
            if side != "martlet"
        }
        summary[workload] = {"median": median, "ratio": ratios, "runs": sides}
        for side, row in median.items():
            beside = (
                f"{ratios[side]['tokens_per_second']:7.2f} {ratios[side]['peak_memory_mb']:6.2f}"
                if side in ratios
                else ""
            )
            cells = (
                f"{row['rows_per_second']:8.2f} {row['tokens_per_second']:9.0f} {row['tokens_per_cpu_second']:13.0f}"
            )
            print(f"{workload:10} {side:13} {cells} {row['peak_memory_mb']:8.0f} {beside}")
    print("aims: tokens/s beside trl >= 1.0, beside ms-swift and llamafactory >= 1.15; peak memory beside trl <= 1.02")
    record = {
        "steps": steps,
        "rounds": rounds,
        "precision": precision,
        "workloads": summary,
        "machine": before,
        "versions": versions_in(TRAINER_PYTHON, ["torch", "transformers", "trl", "peft", "accelerate"]),
        "peers": {
            peer: versions_in(peer_python(peer), ["torch", "transformers", "trl", "peft", "accelerate", peer])
            for peer in PEERS
            if peer in next(iter(measured.values()))
        },
    }
    write(RESULTS[precision], record)


if __name__ == "__main__":
    main()
