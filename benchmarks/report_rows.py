"""The lines of ``RESULTS.md``: what was measured, the aim, and where the JSON has the figure."""

from __future__ import annotations

from typing import Any

from report_row import Row
from report_trainer import packing_rows, peer_rows


def _shares(part: Any, name: str) -> str:
    return f"{part['affinity'][name]:.0%} against {part['round-robin'][name]:.0%}"


def _side_by_side(record: Any) -> float:
    return record[f"{record['runs']}_runs"]["max"]


def _starts(record: Any) -> str:
    """Seconds of each service, the quickest first."""
    quickest_first = sorted(record["seconds"].items(), key=lambda one: one[1])
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in quickest_first) + " s"


def _images(record: Any) -> str:
    sizes = record["image_gb"].items()
    return ", ".join(f"{name.removeprefix('martlet/').partition(':')[0]} {size:.2f}" for name, size in sizes) + " GB"


def has_learned(found: Any) -> bool:
    """Whether every measure of a recipe or a tuner went the way that is better."""
    return all((row["after"] > row["before"]) == row["more_is_better"] for row in found["measures"].values())


def _share(found: Any) -> str:
    return f"{sum(map(has_learned, found.values()))} of {len(found)}"


ROWS = (
    Row(
        "gateway: latency added to a whole answer, 1 connection, p50",
        "gateway",
        "<= 1.5 ms",
        lambda r: f"{r['verdict']['added_p50_ms_at_1']:+.2f} ms",
        lambda r: r["verdict"]["added_p50_ms_at_1"] <= 1.5,
    ),
    Row(
        "gateway: time added to a stream's first byte, 1 connection, p50",
        "gateway",
        "<= 1.5 ms",
        lambda r: f"{r['verdict']['added_first_byte_p50_ms_at_1_streamed']:+.2f} ms",
        lambda r: r["verdict"]["added_first_byte_p50_ms_at_1_streamed"] <= 1.5,
    ),
    Row(
        "a bare gRPC call to the replica, no gateway between (the engine over HTTP: see below), p50",
        "gateway",
        "",
        lambda r: f"{r['replica_call_ms']['p50']:.2f} ms",
    ),
    Row(
        "gateway: requests/s at 16 connections, beside LiteLLM's proxy",
        "gateway",
        ">= 10 x",
        lambda r: f"{r['verdict']['times_litellm_at_16']:.0f} x",
        lambda r: r["verdict"]["times_litellm_at_16"] >= 10,
    ),
    Row(
        "gateway: streams held open at once, errors",
        "gateway",
        "1,000 without an error",
        lambda r: f"{r['verdict']['streams_held_at_once']:,}, {r['verdict']['errors_at_1000']} errors",
        lambda r: r["verdict"]["streams_held_at_once"] >= 1000 and r["verdict"]["errors_at_1000"] == 0,
    ),
    Row(
        "gateway: largest resident set, 1,000 streams",
        "gateway",
        "<= 300 MB",
        lambda r: f"{r['verdict']['rss_mb_at_1000']:.0f} MB",
        lambda r: r["verdict"]["rss_mb_at_1000"] <= 300,
    ),
    Row(
        "run: end of a step -> job of the next one, largest",
        "runs",
        "<= 1 s",
        lambda r: f"{r['one_run']['max']:.3f} s ({r['runs']} runs side by side: {_side_by_side(r):.3f} s)",
        lambda r: max(r["one_run"]["max"], _side_by_side(r)) <= 1.0,
    ),
    Row(
        "job: create -> RUNNING, p50",
        "jobs",
        "<= 100 ms",
        lambda r: (
            f"{r['martlet_to_running_ms']['p50']:.1f} ms (a raw Celery task starts after {r['celery_to_running_ms']['p50']:.1f} ms)"
        ),
        lambda r: r["martlet_to_running_ms"]["p50"] <= 100,
    ),
    Row(
        "jobs/s with one worker, each a process of its own, with stored inputs and outputs",
        "jobs",
        "",
        lambda r: (
            f"{r['martlet_per_second']:.1f} (a raw Celery task that starts a process: {r['celery_process_per_second']:.1f})"
        ),
    ),
    Row(
        "idle worker supervisor, resident",
        "jobs",
        "<= 120 MB",
        lambda r: f"{r['idle_worker_rss_mb']:.0f} MB",
        lambda r: r["idle_worker_rss_mb"] <= 120,
    ),
    Row(
        "artifacts: upload, beside ranged boto3",
        "artifacts",
        ">= 0.9",
        lambda r: f"{r['ratio_to_raw']['upload']:.2f} ({r['megabytes_per_second']['upload']:.0f} MB/s)",
        lambda r: r["ratio_to_raw"]["upload"] >= 0.9,
    ),
    Row(
        "artifacts: first download, beside ranged boto3",
        "artifacts",
        ">= 0.9",
        lambda r: f"{r['ratio_to_raw']['download']:.2f} ({r['megabytes_per_second']['download']:.0f} MB/s)",
        lambda r: r["ratio_to_raw"]["download"] >= 0.9,
    ),
    Row(
        "artifacts: second upload of the same bytes (sends none)",
        "artifacts",
        "",
        lambda r: f"{r['median_seconds']['second upload']:.2f} s for {r['megabytes']} MB",
    ),
    *peer_rows("trainer", "float32"),
    *peer_rows("trainer_bfloat16", "bfloat16"),
    *packing_rows(),
    Row(
        "SUCCEEDED -> first token of the tuned model",
        "first_token",
        "<= 1 s",
        lambda r: f"{r['milliseconds']['SUCCEEDED -> first token']['median']:.0f} ms",
        lambda r: r["milliseconds"]["SUCCEEDED -> first token"]["median"] <= 1000,
    ),
    Row(
        "adapters on a CPU: answers/s, beside vLLM's own LoRA",
        "adapters",
        "",
        lambda r: (
            f"{r['answers_per_second']['martlet']['adapter']:.2f} against "
            f"{r['answers_per_second']['vllm']['adapter']:.2f}: {r['ratio']:.1f} (the base model: "
            f"{r['answers_per_second']['martlet']['base']:.2f})"
        ),
    ),
    Row(
        "evaluation: rows/s beside a bare client, engine at 100 tokens/s",
        "evaluator",
        ">= 0.95",
        lambda r: (
            f"{r['scenarios']['paced']['ratio']:.2f} "
            f"({r['scenarios']['paced']['rows_per_second']['martlet']['median']:.0f} rows/s)"
        ),
        lambda r: r["scenarios"]["paced"]["ratio"] >= 0.95,
    ),
    Row(
        "evaluation: the same, engine that answers at once",
        "evaluator",
        "",
        lambda r: (
            f"{r['scenarios']['at once']['ratio']:.2f} "
            f"({r['scenarios']['at once']['rows_per_second']['martlet']['median']:,.0f} rows/s; "
            f"{1000 * r['scenarios']['at once']['added_ms_a_row']:.0f} us a row)"
        ),
    ),
    Row(
        "quantizing (w4a16, SmolLM2): a job's step, calibration and all, beside the library called directly",
        "quantizer",
        "<= 1.05",
        lambda r: (
            f"{r['overhead']['ratio']['step']:.3f} ({r['overhead']['seconds']['martlet']['step']['median']:.0f} s against "
            f"{r['overhead']['seconds']['library']['step']['median']:.0f} s; without starting and calibration texts "
            f"{r['overhead']['ratio']['work']:.3f}; {r['overhead']['rounds']} rounds)"
        ),
        lambda r: r["overhead"]["ratio"]["step"] <= 1.05,
    ),
    Row(
        "quantizing by AutoAWQ (SmolLM2, whole job)",
        "quantizer",
        "",
        lambda r: (
            f"{r['awq']['quantize_seconds'] / 60:.1f} min, perplexity x {r['awq']['perplexity_ratio']:.3f}, size x "
            f"{r['awq']['size_ratio']:.2f}; loaded by "
            f"{', '.join(entry['engine'] for entry in r['awq']['engines'] if entry['loaded'])}"
        ),
    ),
    Row(
        "recipes on real data that learn, by held-out rows (table below)",
        "recipes",
        "all",
        lambda r: _share(r["recipes"]),
        lambda r: all(has_learned(found) for found in r["recipes"].values()),
    ),
    Row(
        "tuners with `sft` on SmolLM2 that learn, by held-out rows (table below)",
        "recipes",
        "all",
        lambda r: _share(r["tuners"]),
        lambda r: all(has_learned(found) for found in r["tuners"].values()),
    ),
    Row(
        "replicas: answers/s of two and three beside one (trivial engine, eight answers at a time)",
        "replicas",
        ">= 1.9x with two",
        lambda r: f"{r['times_one']['2']:.2f}x, {r['times_one']['3']:.2f}x",
        lambda r: r["times_one"]["2"] >= 1.9,
    ),
    Row(
        "one of three replicas killed under load: requests that had sent no token, and failed",
        "replicas",
        "0",
        lambda r: (
            f"{sum(k['not_begun_failed'] for k in r['killed'])} of {sum(k['not_begun'] for k in r['killed'])} "
            f"(of {sum(k['begun'] for k in r['killed'])} that had, {sum(k['begun_failed'] for k in r['killed'])} broke)"
        ),
        lambda r: not any(k["not_begun_failed"] for k in r["killed"]),
    ),
    Row(
        "routing, shared documents: time to the first token, round robin beside affinity (vLLM, two replicas)",
        "routing",
        ">= 2x (mean)",
        lambda r: (
            f"mean {r['documents']['mean_ratio']:.1f}x, median {r['documents']['median_ratio']:.1f}x; prompt tokens "
            f"cached {_shares(r['documents'], 'cached_share')}"
        ),
        lambda r: r["documents"]["mean_ratio"] >= r["aim"],
    ),
    Row(
        "routing, many adapters: the same",
        "routing",
        "",
        lambda r: (
            f"mean {r['adapters']['mean_ratio']:.1f}x, median {r['adapters']['median_ratio']:.1f}x; adapter there already "
            f"{_shares(r['adapters'], 'hit_rate')}"
        ),
    ),
    Row(
        "demo: held-out accuracy before and after",
        "demo",
        "+20 points",
        lambda r: (
            f"{r['base_accuracy']:.1%} -> {r['tuned_accuracy']:.1%}, interval {100 * r['gain_low']:+.1f} to "
            f"{100 * r['gain_high']:+.1f} points ({r['test_rows']} rows, one seed)"
        ),
        lambda r: r["gain"] >= 0.2,
    ),
    Row(
        "demo: whole command, environments in place",
        "demo",
        "<= 10 min",
        lambda r: f"{r['total_seconds'] / 60:.1f} min, of which {r['train_seconds'] / 60:.1f} min training",
        lambda r: r["total_seconds"] <= 600,
    ),
    Row(
        "demo: whole command in a fresh clone with empty package caches",
        "demo_cold",
        "<= 20 min",
        lambda r: f"{r['command_seconds'] / 60:.1f} min, of which {r['train_seconds'] / 60:.1f} min training",
        lambda r: r["command_seconds"] <= 1200,
    ),
    Row(
        "life cycle: held-out accuracy of each variant",
        "lifecycle",
        "",
        lambda r: ", ".join(f"{v['name']} {v['accuracy']:.1%}" for v in r["variants"]),
    ),
    Row(
        "life cycle: size and perplexity of what was quantized",
        "lifecycle",
        "",
        lambda r: ", ".join(
            f"{v['name']} x {v['size_ratio']:.2f}, x {v['perplexity_ratio']:.3f}"
            for v in r["variants"]
            if v["size_ratio"] and v["size_ratio"] < 1
        ),
    ),
    Row(
        "life cycle: whole command, environments in place",
        "lifecycle",
        "<= 25 min",
        lambda r: f"{r['total_seconds'] / 60:.1f} min",
        lambda r: r["total_seconds"] <= 1500,
    ),
    Row(
        "life cycle: whole command in a fresh clone with empty package caches",
        "lifecycle_cold",
        "<= 45 min",
        lambda r: f"{r['command_seconds'] / 60:.1f} min",
        lambda r: r["command_seconds"] <= 2700,
    ),
    Row(
        "containers: start -> healthy, all at once, after `down` (looked at every 1 to 3 s)",
        "containers",
        "",
        _starts,
    ),
    Row("containers: image sizes, the base image in each", "containers", "", _images),
)
