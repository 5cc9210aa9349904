"""A quantization's own step beside its library called directly, and AutoAWQ on a real model from beginning to verdict.

``overhead``: ``w4a16`` on SmolLM2-135M-Instruct with the same calibration windows, in processes of their own and in turns: the job's step
``quantize`` as the recipe starts it (reading rows, cutting windows, choosing layers, reporting), and a script that loads the model, calls
llm-compressor and saves. ``step`` is the whole process, ``work`` is what the job reports as ``quantize_seconds``, ``cpu`` is the time of
the processor for the whole process, which other programs disturb least. The aim is a ratio of at most 1.05. ``awq``: the whole job, with
its verdict and the engines that loaded what it wrote.

    python benchmarks/quantizer.py [--rounds 2] [--rows 16] [--only overhead|awq]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from environment import ROOT, machine, spread, versions_in, write
from headlines import MODEL_DIRECTORY as MODEL
from headlines import prepare_model

RESULTS = ROOT / "benchmarks" / "results" / "quantizer.json"
PYTHON = ROOT / ".martlet/envs/quantizer-llmcompressor/bin/python"
SEQUENCE_LENGTH, SEED, GROUP_SIZE = 128, 42, 64
AWQ = "awq/smollm2"
_MEASURES = ("step", "work", "cpu")
_VERSIONS = ("torch", "transformers", "llmcompressor", "compressed-tensors")


def main() -> None:
    """Be the benchmark, or one of its sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--only", choices=["overhead", "awq"])
    parser.add_argument("--side", choices=["martlet", "library", "windows"])
    parser.add_argument("--workdir", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        sides = {"martlet": be_martlet, "library": be_library, "windows": be_windows}
        print(json.dumps(sides[arguments.side](arguments.workdir, arguments.rows)))
        return
    record: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    prepare_model()
    before = os.getloadavg()[0]
    if arguments.only != "awq":
        record["overhead"] = measure(arguments.rounds, arguments.rows)
    record |= {
        "machine": {**machine(), "load_average_before": round(before, 1)},
        "versions": versions_in(PYTHON, _VERSIONS),
    }
    if arguments.only != "overhead":
        record["awq"] = awq()
    write(RESULTS, record)


def measure(rounds: int, rows: int) -> dict[str, Any]:
    """Both sides in turns; a ratio is that of the medians."""
    found: dict[str, list[Mapping[str, float]]] = {"library": [], "martlet": []}
    with tempfile.TemporaryDirectory() as scratch:
        windows = _side("windows", Path(scratch), rows)
        for number in range(rounds):
            for side in sorted(found, reverse=bool(number % 2)):
                workdir = Path(scratch) / f"{side}-{number}"
                workdir.mkdir()
                (workdir / "windows.json").symlink_to(Path(scratch) / "windows.json")
                found[side].append(_side(side, workdir, rows))
                told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found[side][-1].items())
                print(f"{side:8} {told}", flush=True)
    return {
        "method": "w4a16",
        "rounds": rounds,
        "calibration_rows": rows,
        **windows,
        "seconds": {
            side: {name: spread(run[name] for run in runs) for name in _MEASURES} for side, runs in found.items()
        },
        "ratio": {
            name: round(_median(found["martlet"], name) / _median(found["library"], name), 3) for name in _MEASURES
        },
    }


def _median(runs: list[Mapping[str, float]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def awq() -> dict[str, Any]:
    """The cell of the table of support; the job is run where it has no outcome yet."""
    script = ROOT / "benchmarks" / "support_quantization.py"
    subprocess.run([sys.executable, str(script), "--only", AWQ, "--limit", "1800"], check=True)
    job = json.loads((ROOT / "docs/support/quantization.json").read_text())["cells"][AWQ]["job"]
    if "perplexity_ratio" not in job:
        raise SystemExit(f"awq on SmolLM2 has no figures: {job}")
    names = ("quantize_seconds", "perplexity", "base_perplexity", "perplexity_ratio", "top1_agreement", "size_ratio")
    more = ("group_size", "calibration_rows_used", "peak_memory_bytes", "engines", "versions", "date")
    return {name: job[name] for name in (*names, *more)}


def be_windows(workdir: Path, rows: int) -> dict[str, Any]:
    """The calibration windows that both sides take."""
    from martlet_quantizer import step

    windows, counts = step._calibration_windows(_arguments(workdir, rows), MODEL)
    (workdir / "windows.json").write_text(json.dumps([list(window) for window in windows]))
    return {"windows": len(windows), "tokens": counts["calibration_tokens"]}


def be_martlet(workdir: Path, rows: int) -> dict[str, float]:
    """The step as the recipe runs it, from a process without ML libraries."""
    from martlet_quantizer.steps import run_step
    from martlet_quantizer.testing import Recorder

    for name in ("output", "scratch"):
        (workdir / name).mkdir()
    begun = time.perf_counter()
    made = run_step("quantize", _arguments(workdir, rows), Recorder(), lambda: False, workdir=workdir)
    return {"step": time.perf_counter() - begun, "work": made["quantize_seconds"], "cpu": _children_cpu_seconds()}


def be_library(workdir: Path, rows: int) -> dict[str, float]:
    """llm-compressor called directly, in a process of its own."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); import quantizer; quantizer.call_library(sys.argv[2])"
    begun = time.perf_counter()
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(workdir)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    work = json.loads(done.stdout.splitlines()[-1])["work"]
    return {"step": time.perf_counter() - begun, "work": work, "cpu": _children_cpu_seconds()}


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def call_library(workdir: str) -> None:
    """The least that quantizes: load, one call, save, with the numbers that our method chooses."""
    import torch
    from transformers import AutoModelForCausalLM

    begun = time.perf_counter()
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    windows = json.loads((Path(workdir) / "windows.json").read_text())
    rows = {"input_ids": windows, "attention_mask": [[1] * len(window) for window in windows]}
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP_SIZE}
    groups = {"group_0": {"targets": ["Linear"], "weights": {**weights, "observer": "mse"}}}
    oneshot(
        model=model,
        recipe=[GPTQModifier(config_groups=groups, ignore=["lm_head"], dampening_frac=0.1)],
        dataset=Dataset.from_dict(rows),
        num_calibration_samples=len(windows),
        max_seq_length=SEQUENCE_LENGTH,
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(Path(workdir) / "output", save_compressed=True)
    print(json.dumps({"work": time.perf_counter() - begun}))


def _arguments(workdir: Path, rows: int) -> dict[str, Any]:
    options = {"bits": 4, "group_size": GROUP_SIZE, "symmetric": None, "ignore": [], "double_quantization": None}
    return {
        "method": "w4a16",
        "source": str(MODEL),
        "output": str(workdir / "output"),
        "scratch": str(workdir / "scratch"),
        "options": options,
        "bits": 4,
        "gguf_type": "",
        "calibration": {"path": None, "max_rows": rows, "sequence_length": SEQUENCE_LENGTH},
        "seed": SEED,
    }


def _side(side: str, workdir: Path, rows: int) -> Mapping[str, Any]:
    command = [str(PYTHON), __file__, "--side", side, "--workdir", str(workdir), "--rows", str(rows)]
    env = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", **os.environ}
    env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (workdir / f"{side}.log").open("wb") as log:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=log, env=env)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
