"""What more replicas bring: throughput with one, two and three, and what a killed one costs.

    python benchmarks/replicas.py [--rounds 3]

The trivial engine stands in for a model: it gives eight answers at a time, sixteen tokens each at forty tokens a second, so
that the replica is the limit and not this machine's cores. Thirty-two connections ask the gateway without a pause; a
third of them would keep one replica busy. For the second figure three replicas answer forty-eight streams; as soon as
each has begun some, one is killed (SIGKILL), and every stream is counted: those that had not sent a token must all end
well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from environment import ROOT, machine, versions, write
from small_platform import SmallPlatform, small_platform

RESULTS = ROOT / "benchmarks" / "results" / "replicas.json"
MODEL = "echo"
SLOTS, TOKENS, RATE = 8, 16, 40.0
CONNECTIONS = 32
STREAMS = 48
ECHO = {
    "MARTLET_ENGINE": "echo",
    "MARTLET_MODEL": MODEL,
    "MARTLET_RESOLVE_MODELS": "false",
    "MARTLET_ECHO_TOKENS_PER_SECOND": str(RATE),
    "MARTLET_ECHO_SLOTS": str(SLOTS),
}


def main() -> None:
    """Run it, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median counts")
    options = parser.parse_args()
    before = machine()
    with small_platform() as platform:
        platform.start_gateway()
        rates: dict[int, float] = {}
        for count in (1, 2, 3):
            platform.start_replica(f"replica-{count}", ECHO)
            rates[count] = round(statistics.median(throughput(platform, count) for _ in range(options.rounds)), 2)
            print(f"{count} replicas: {rates[count]:.1f} answers/s, {rates[count] / rates[1]:.2f}x", flush=True)
        killed = [asyncio.run(kill_one(platform, number)) for number in range(options.rounds)]
    record = {
        "answers_per_second": rates,
        "times_one": {count: round(rate / rates[1], 3) for count, rate in rates.items()},
        "killed": killed,
        "slots": SLOTS,
        "rounds": options.rounds,
        "machine": before,
        "versions": versions(("grpcio", "openai", "uvloop")),
    }
    write(RESULTS, record)


def throughput(platform: SmallPlatform, replicas: int) -> float:
    """Answers a second over some ten seconds."""
    requests = int(10 * replicas * SLOTS * RATE / TOKENS)
    done = subprocess.run(
        [
            *(
                sys.executable,
                str(Path(__file__).parent / "http_load.py"),
                "--url",
                platform.url,
                "--key",
                platform.key,
            ),
            *("--model", MODEL, "--max-tokens", str(TOKENS), "--concurrency", str(CONNECTIONS)),
            *("--requests", str(requests), "--timeout", "120"),
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )
    outcome = json.loads(done.stdout)
    if outcome["errors"]:
        raise SystemExit(f"{outcome['errors']} errors: {outcome['error_samples']}")
    return outcome["requests_per_second"]


@dataclass
class Stream:
    """One answer as its client saw it."""

    tokens: int = 0
    begun_before: bool = False
    failed: str = ""


async def kill_one(platform: SmallPlatform, number: int) -> dict[str, int]:
    """Counts of streams by what they had sent when a replica was killed and how they ended; a new replica takes its place."""
    client = openai.AsyncOpenAI(base_url=f"{platform.url}/v1", api_key=platform.key, max_retries=0, timeout=60)
    streams = [Stream() for _ in range(STREAMS)]
    tasks = [asyncio.create_task(follow(client, stream)) for stream in streams]
    while sum(stream.tokens > 0 for stream in streams) < 3 * SLOTS:  # noqa: ASYNC110  # until every slot is taken
        await asyncio.sleep(0.002)
    victim = platform.replicas.pop(0)
    for stream in streams:
        stream.begun_before = stream.tokens > 0
    victim.process.kill()
    await asyncio.gather(*tasks)
    await client.close()
    victim.process.wait()
    kinds = Counter((stream.begun_before, bool(stream.failed)) for stream in streams)
    counts = {
        "begun": kinds[True, False] + kinds[True, True],
        "begun_failed": kinds[True, True],
        "not_begun": kinds[False, False] + kinds[False, True],
        "not_begun_failed": kinds[False, True],
    }
    print(f"killed one of three: {counts}", flush=True)
    for failed in {stream.failed for stream in streams if stream.failed}:
        print(f"  a client saw: {failed}")
    await asyncio.to_thread(platform.start_replica, f"replica-again-{number}", ECHO)
    return counts


async def follow(client: openai.AsyncOpenAI, stream: Stream) -> None:
    """Ask for a streamed answer and count its tokens."""
    messages: Any = [{"role": "user", "content": "one two three"}]
    try:
        async for chunk in await client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=TOKENS, stream=True
        ):
            if chunk.choices and chunk.choices[0].delta.content:
                stream.tokens += 1
    except openai.APIError as error:
        stream.failed = f"{type(error).__name__}: {error.message}"
    else:
        if stream.tokens != TOKENS:
            stream.failed = f"ended after {stream.tokens} tokens without an error"


if __name__ == "__main__":
    main()
