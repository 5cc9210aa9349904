"""What the gateway costs: requests/s, added latency and memory, beside LiteLLM's proxy in front of the same engine.

    python benchmarks/gateway.py [--rounds 3] [--skip-litellm]

The trivial engine answers with known tokens and costs next to nothing, so what is measured is the path to it: (i) the
engine called over HTTP on loopback, (ii) through the gateway (REST, gRPC to an inference replica, the same tokens),
(iii) through LiteLLM's proxy, one worker, with the HTTP engine as its upstream. At 1, 16 and 128 connections the engine
sends at once; at 1,000 it paces its tokens, so that all streams are open together. The load generator
(``http_load.py``) is a process of its own. Rounds alternate between the targets and the median counts (three times as
many rounds at 1 connection, one at 1,000); LiteLLM runs once, with fewer requests. On a machine with few cores all of
them share these: read the figures beside each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import ROOT, machine, versions, write
from grpc_call import time_calls
from martlet_core.local_servers import free_port
from processes import Processes, peak_rss_mb, rss_mb, wait_http
from small_platform import INTERNAL_TOKEN, SmallPlatform, small_platform

RESULTS = ROOT / "benchmarks" / "results" / "gateway.json"
LITELLM = "1.106.2"
LITELLM_KEY = "sk-bench-4f1c0d7a9b3e"
MODEL = "echo"
TOKENS = 16
#: Tokens/s of each stream when 1,000 are held: a stream lasts 8 s, and the engine writes 2,000 events/s in all.
HELD_RATE = 2.0
AIMS = {"added_p50_ms_at_1": 1.5, "times_litellm_at_16": 10.0, "rss_mb_at_1000": 300.0}


@dataclass(frozen=True)
class Scenario:
    """One row: how many connections, streamed or not, requests by target."""

    concurrency: int
    stream: bool
    requests: int
    litellm_requests: int
    paced: bool = False

    @property
    def name(self) -> str:
        return f"{self.concurrency} {'streamed' if self.stream else 'whole'}"


SCENARIOS = (
    Scenario(1, False, 800, 80),
    Scenario(1, True, 300, 40),
    Scenario(16, False, 3000, 400),
    Scenario(16, True, 1000, 200),
    Scenario(128, False, 3000, 400),
    Scenario(128, True, 1000, 256),
    Scenario(1000, False, 2000, 1000, paced=True),
    Scenario(1000, True, 2000, 1000, paced=True),
)


@dataclass
class Target:
    """Something to send load to; ``paced_url`` leads to the engine that paces its tokens, ``replica`` is the address of the
    replica behind it that sends at once.
    """

    name: str
    url: str
    paced_url: str
    key: str = "none"
    pids: Sequence[int] = ()
    replica: str = ""


def main() -> int:
    """Run it, print the tables, write the JSON; the exit code is 0 also where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of engine and gateway; the median counts")
    parser.add_argument("--skip-litellm", action="store_true", help="leave LiteLLM's proxy out")
    options = parser.parse_args()
    load_average = os.getloadavg()[0]
    with platform_running(with_litellm=not options.skip_litellm) as targets:
        rows = [measure(scenario, targets, options.rounds) for scenario in SCENARIOS]
        rss = peak_rss_mb(targets["gateway"].pids[0])
        call = time_calls(targets["gateway"].replica, INTERNAL_TOKEN, MODEL, TOKENS, rounds=3 * options.rounds)
    record = {
        "rows": rows,
        "replica_call_ms": call,
        "gateway_peak_rss_mb": rss,
        "aims": AIMS,
        "verdict": verdict(rows, rss),
        "rounds": options.rounds,
        "machine": machine() | {"load_average_before": load_average},
        "versions": versions(("grpcio", "uvicorn", "starlette", "uvloop", "aiohttp")) | {"litellm": LITELLM},
    }
    show(record)
    write(RESULTS, record)
    return 0


@contextmanager
def platform_running(*, with_litellm: bool) -> Iterator[dict[str, Target]]:
    """The engine over HTTP, the gateway with its replicas, and LiteLLM; each in fast and paced form."""
    with small_platform() as platform:
        engines = {rate: start_http_engine(platform.processes, rate) for rate in (0.0, HELD_RATE)}
        targets = {
            "engine": Target("engine", engines[0.0], engines[HELD_RATE]),
            "gateway": start_gateway(platform),
        }
        if with_litellm:
            targets["litellm"] = start_litellm(platform.processes, engines)
        yield targets


def start_http_engine(processes: Processes, rate: float) -> str:
    """The engine's tokens over plain HTTP; returns its URL."""
    port = free_port()
    argv = ["-m", "martlet_inference.engines.echo", "--port", str(port), "--tokens-per-second", str(rate)]
    process = processes.start(f"engine-{rate:g}", [sys.executable, *argv])
    url = f"http://127.0.0.1:{port}"
    wait_http(f"{url}/health", process)
    return url


def start_gateway(platform: SmallPlatform) -> Target:
    """The gateway with a fast and a paced replica."""
    platform.start_gateway()
    for rate in (0.0, HELD_RATE):
        platform.start_replica(
            f"replica-{rate:g}",
            {
                "MARTLET_ENGINE": "echo",
                "MARTLET_MODEL": f"{MODEL}-paced" if rate else MODEL,
                "MARTLET_RESOLVE_MODELS": "false",
                "MARTLET_ECHO_TOKENS_PER_SECOND": str(rate),
                "MARTLET_MAX_REQUESTS": "4096",
            },
        )
    assert platform.gateway is not None
    pids = (platform.gateway.pid,)
    return Target("gateway", platform.url, platform.url, platform.key, pids, platform.replicas[0].address)


def start_litellm(processes: Processes, engines: Mapping[float, str]) -> Target:
    """LiteLLM's proxy with one worker in front of the HTTP engines; installed on first use in an environment of its own."""
    home = ROOT / ".martlet/envs/bench-litellm"
    if not (home / "bin/litellm").exists():
        print(f"installing litellm {LITELLM} into {home} (once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run(
            [str(home / "bin/python"), "-m", "pip", "install", "-q", f"litellm[proxy]=={LITELLM}"], check=True
        )
    models = [
        {
            "model_name": f"{MODEL}-paced" if rate else MODEL,
            "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"},
        }
        for rate, url in engines.items()
    ]
    config = processes.directory / "litellm.json"  # YAML reads JSON
    config.write_text(json.dumps({"model_list": models, "litellm_settings": {"telemetry": False}}))
    port = free_port()
    process = processes.start(
        "litellm",
        [
            str(home / "bin/litellm"),
            "--config",
            str(config),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--num_workers",
            "1",
        ],
        {
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_TELEMETRY": "False",
            "LITELLM_MASTER_KEY": LITELLM_KEY,  # it refuses to start without one
        },
    )
    url = f"http://127.0.0.1:{port}"
    wait_http(f"{url}/health/liveliness", process, seconds=240)
    return Target("litellm", url, url, key=LITELLM_KEY, pids=(process.pid,))


def measure(scenario: Scenario, targets: Mapping[str, Target], rounds: int) -> dict[str, Any]:
    """One row: the median of the rounds for each target, and what lies between the engine and the others."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in targets}
    order = [name for name in targets if name != "litellm"]
    # One connection waits for threads to wake up, over and over, so it feels the machine's moods most: more rounds.
    count = 1 if scenario.paced else rounds * (3 if scenario.concurrency == 1 else 1)
    for index in range(count):
        for name in order if index % 2 == 0 else order[::-1]:
            runs[name].append(load(targets[name], scenario, scenario.requests))
    if "litellm" in targets:
        runs["litellm"].append(load(targets["litellm"], scenario, scenario.litellm_requests))
    row: dict[str, Any] = {"scenario": scenario.name, "concurrency": scenario.concurrency, "stream": scenario.stream}
    row["targets"] = {name: middle(results) for name, results in runs.items()}
    for name in runs:
        if name != "engine":
            row["targets"][name]["added_ms"] = {
                kind: difference(row["targets"][name][kind], row["targets"]["engine"][kind])
                for kind in ("latency_ms", "first_byte_ms")
            }
    rss = {name: rss_mb(target.pids[0]) for name, target in targets.items() if target.pids}
    row["rss_mb_after"] = rss
    print(line(row), flush=True)
    return row


def load(target: Target, scenario: Scenario, requests: int) -> dict[str, Any]:
    """One run of the load generator; a tenth of the requests warms up connections and caches first."""
    argv = [
        sys.executable,
        str(Path(__file__).parent / "http_load.py"),
        "--key",
        target.key,
        "--max-tokens",
        str(TOKENS),
    ]
    argv += ["--url", target.paced_url if scenario.paced else target.url]
    argv += ["--model", f"{MODEL}-paced" if scenario.paced else MODEL, "--concurrency", str(scenario.concurrency)]
    argv += ["--timeout", "120"] + (["--stream"] if scenario.stream else [])
    if not scenario.paced:
        subprocess.run(
            [*argv, "--requests", str(max(10, requests // 10))], check=True, capture_output=True, timeout=300
        )
    done = subprocess.run([*argv, "--requests", str(requests)], check=True, capture_output=True, timeout=300)
    return json.loads(done.stdout)


def middle(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median run by number, errors summed."""

    def of(values: Sequence[float]) -> float:
        return round(statistics.median(values), 3) if values else float("nan")

    return {
        "requests": sum(r["requests"] for r in results),
        "errors": sum(r["errors"] for r in results),
        "error_samples": sorted({sample for r in results for sample in r["error_samples"]})[:3],
        "held_at_once": max(r["held_at_once"] for r in results),
        "requests_per_second": of([r["requests_per_second"] for r in results]),
        **{
            kind: {p: of([r[kind][p] for r in results if r[kind]]) for p in ("p50", "p95", "p99")}
            for kind in ("latency_ms", "first_byte_ms")
        },
    }


def difference(mine: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    """By how much each percentile is larger."""
    return {p: round(mine[p] - base[p], 3) for p in mine}


def verdict(rows: Sequence[Mapping[str, Any]], rss: float) -> dict[str, Any]:
    """The aims beside what was measured."""
    by_name = {row["scenario"]: row["targets"] for row in rows}
    held = by_name["1000 streamed"]["gateway"]
    result: dict[str, Any] = {
        "added_p50_ms_at_1": by_name["1 whole"]["gateway"]["added_ms"]["latency_ms"]["p50"],
        "added_first_byte_p50_ms_at_1_streamed": by_name["1 streamed"]["gateway"]["added_ms"]["first_byte_ms"]["p50"],
        "streams_held_at_once": held["held_at_once"],
        "errors_at_1000": held["errors"] + by_name["1000 whole"]["gateway"]["errors"],
        "rss_mb_at_1000": rss,
    }
    if "litellm" in by_name["16 whole"]:
        targets = by_name["16 whole"]
        ratio = targets["gateway"]["requests_per_second"] / max(0.001, targets["litellm"]["requests_per_second"])
        result["times_litellm_at_16"] = round(ratio, 1)
    return result


def show(record: Mapping[str, Any]) -> None:
    """Print the summary."""
    print("\naim                                   measured")
    for name, value in record["verdict"].items():
        aim = {"errors_at_1000": "0", "streams_held_at_once": "1000"}.get(name) or str(record["aims"].get(name, ""))
        print(f"{name:38}{value:>10}   {'(aim ' + aim + ')' if aim else ''}")
    print(f"{'a bare gRPC call to the replica, p50 ms':38}{record['replica_call_ms']['p50']:>10.2f}")


def line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    parts = [f"{row['scenario']:>14}"]
    for name, result in row["targets"].items():
        added = result.get("added_ms", {}).get("first_byte_ms" if row["stream"] else "latency_ms", {})
        times = " ".join(f"{p} {result['latency_ms'][p]:.1f}" for p in ("p50", "p95", "p99"))
        more = f" added p50 {added['p50']:+.2f} p95 {added['p95']:+.2f} p99 {added['p99']:+.2f}" if added else ""
        errors = f" ERRORS {result['errors']}" if result["errors"] else ""
        parts.append(f"{name} {result['requests_per_second']:.0f}/s [{times} ms{more}]{errors}")
    return " | ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
