"""How many rows a second an evaluation asks, beside a bare asyncio client that asks the same of the same engine and keeps nothing.

The engine is the echo engine over HTTP, in a process of its own. ``paced``: it sends 16 tokens at 100 a second, as a real one
might; the aim is a ratio of at least 0.95. ``at once``: it answers without a pause, which shows what the evaluation itself costs a row.
Both sides ask in processes of their own, in turns; the time is that of the asking, from the first question to the last answer.

    python benchmarks/evaluator.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from environment import ROOT, machine, spread, versions_in, write

RESULTS = ROOT / "benchmarks" / "results" / "evaluator.json"
PYTHON = ROOT / ".martlet/envs/evaluator/bin/python"
MODEL = "echo"
MAX_TOKENS = 16
SCENARIOS: Mapping[str, Mapping[str, int]] = {
    "paced": {"tokens_per_second": 100, "rows": 1200, "concurrency": 32},
    "at once": {"tokens_per_second": 0, "rows": 3000, "concurrency": 32},
}


def main() -> None:
    """Be the benchmark, or one of its two sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=["martlet", "bare"])
    parser.add_argument("--url")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--concurrency", type=int)
    arguments = parser.parse_args()
    if arguments.side:
        side = ask_with_martlet if arguments.side == "martlet" else ask_bare
        print(json.dumps(side(arguments.url, arguments.rows, arguments.concurrency)))
        return
    before = os.getloadavg()[0]
    record: dict[str, Any] = {"rounds": arguments.rounds, "scenarios": {}}
    for name, scenario in SCENARIOS.items():
        record["scenarios"][name] = measure(name, scenario, arguments.rounds)
    record |= {
        "machine": {**machine(), "load_average_before": round(before, 1)},
        "versions": versions_in(PYTHON, ["aiohttp"]),
    }
    write(RESULTS, record)


def measure(name: str, scenario: Mapping[str, int], rounds: int) -> dict[str, Any]:
    """Both sides in turns; the ratio is that of the medians."""
    rates: dict[str, list[float]] = {"martlet": [], "bare": []}
    with echo_engine(scenario["tokens_per_second"]) as url:
        for number in range(rounds):
            for side in sorted(rates, reverse=bool(number % 2)):
                argv = [str(PYTHON), __file__, "--side", side, "--url", url]
                argv += ["--rows", str(scenario["rows"]), "--concurrency", str(scenario["concurrency"])]
                done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=600)
                rates[side].append(scenario["rows"] / json.loads(done.stdout.splitlines()[-1])["seconds"])
    median = {side: statistics.median(found) for side, found in rates.items()}
    ratio = median["martlet"] / median["bare"]
    extra_ms = 1000 / median["martlet"] - 1000 / median["bare"]
    print(f"{name:8} {median['martlet']:8.1f} rows/s, bare client {median['bare']:8.1f}: ratio {ratio:.3f}")
    return {
        **scenario,
        "rows_per_second": {side: spread(found) for side, found in rates.items()},
        "ratio": round(ratio, 3),
        "added_ms_a_row": round(extra_ms, 4),
    }


def questions(rows: int) -> list[str]:
    """What is asked."""
    return [f"question {index} of the benchmark, with some more words to send" for index in range(rows)]


def ask_with_martlet(url: str, rows: int, concurrency: int) -> dict[str, float]:
    """A whole evaluation; timed is the phase that asks."""
    from martlet_evaluator.evaluate import run

    class Clock:
        """A report that notes when the phases begin."""

        def __init__(self) -> None:
            self.phases: dict[str, float] = {}

        def phase(self, name: str) -> None:
            self.phases[name.partition(":")[0]] = time.perf_counter()

        def ignore(self, *_arguments: Any, **_named: Any) -> None:
            """Everything else a report can be told."""

        log = metrics = checkpoint = partial_result = ignore

    clock: Any = Clock()
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "inputs/dataset/rows.jsonl"
        data.parent.mkdir(parents=True)
        lines = [json.dumps({"prompt": text, "completion": text}) + "\n" for text in questions(rows)]
        data.write_text("".join(lines))
        spec = {
            "targets": [{"name": "echo", "model": MODEL}],
            "dataset": "artifacts/a",
            "suites": [{"suite": "exact_match"}],
            "concurrency": concurrency,
            "sampling": {"max_tokens": MAX_TOKENS},
        }
        run({"spec": spec, "gateway": {"base_url": url}}, Path(directory), clock, lambda: False)
    return {"seconds": clock.phases["measuring"] - clock.phases["asking echo"]}


def ask_bare(url: str, rows: int, concurrency: int) -> dict[str, float]:
    """The least that asks: the same client library, the same requests, answers parsed and thrown away."""
    import asyncio

    import aiohttp

    async def run() -> float:
        texts = iter(questions(rows))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def take() -> None:
                for text in texts:
                    body = {
                        "model": MODEL,
                        "messages": [{"role": "user", "content": text}],
                        "max_tokens": MAX_TOKENS,
                        "temperature": 0.0,
                        "seed": 42,
                    }
                    async with session.post(f"{url}/chat/completions", json=body) as response:
                        assert (await response.json())["choices"][0]["message"]["content"]

            begun = time.perf_counter()
            await asyncio.gather(*(take() for _ in range(concurrency)))
            return time.perf_counter() - begun

    return {"seconds": asyncio.run(run())}


@contextmanager
def echo_engine(tokens_per_second: int) -> Iterator[str]:
    """The echo engine over HTTP; its base URL."""
    argv = [sys.executable, "-m", "martlet_inference.engines.echo", "--port", "0"]
    argv += ["--tokens-per-second", str(tokens_per_second)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        try:
            yield f"http://{address}/v1"
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
