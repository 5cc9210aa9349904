"""``merge create|list|show|watch|cancel``: adapters folded into their base models."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rich.markup import escape

from martlet_cli.commands.files import when
from martlet_cli.context import Context, Subparsers, command, group
from martlet_cli.gateway import Gateway
from martlet_cli.watch import POLL_SECONDS

#: Commands of the group; anything else behind ``merge`` is an adapter to merge.
COMMANDS = ("create", "list", "show", "watch", "cancel")
_JOBS = "/merge/jobs"
_OVER = ("SUCCEEDED", "FAILED", "CANCELLED")


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    commands = group(
        subparsers, "merge", "fold adapters into their base models (`martlet merge MODEL` is short for create)"
    )
    create = command(
        commands, "create", _create, "merge an adapter; the result is compared with it before it is published"
    )
    create.add_argument("adapter", help="a fine-tuned model's name, or artifacts/<id>")
    create.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="storage of the weights (default: the base's)",
    )
    create.add_argument("--suffix", help="part of the merged model's name")
    create.add_argument("--watch", action="store_true", help="follow the job until it is over")
    listing = command(commands, "list", _list, "list merge jobs, newest first")
    listing.add_argument("--limit", type=int, default=20, help="most jobs to show (default 20)")
    for name, handler, help in (
        ("show", _show, "show a merge job: state, adapter, merged model, how far they differ"),
        ("watch", _watch, "follow a merge job until it is over"),
        ("cancel", _cancel, "stop a merge job for good"),
    ):
        command(commands, name, handler, help).add_argument("id", help="the job's id")


def _create(context: Context, arguments: argparse.Namespace) -> int:
    spec = {"adapter": arguments.adapter, "precision": arguments.precision, "suffix": arguments.suffix}
    body = {"spec": {name: value for name, value in spec.items() if value is not None}}
    job = context.gateway.call("POST", _JOBS, json=body)
    if arguments.watch:
        return _follow(context, job["id"])
    context.output.result(job, escape(_line(job)))
    if not context.output.as_json:
        context.output.say(f"follow it: martlet merge watch {job['id']}")
    return 0


def _list(context: Context, arguments: argparse.Namespace) -> int:
    jobs = context.gateway.call("GET", _JOBS, params={"limit": arguments.limit})["data"]
    if context.output.as_json:
        context.output.json(jobs)
        return 0
    rows = [
        job
        | {
            "adapter": job["spec"]["adapter"],
            "merged_model": (job.get("result") or {}).get("merged_model"),
            "created": _when(job.get("create_time")),
        }
        for job in jobs
    ]
    columns = ("id", "state", "adapter", "merged_model", "created")
    context.output.table(rows, columns, empty="no merges yet; `martlet merge MODEL` makes one")
    return 0


def _show(context: Context, arguments: argparse.Namespace) -> int:
    job = _get(context.gateway, arguments.id)
    if context.output.as_json:
        context.output.json(job)
        return 0
    times = {name.removesuffix("_time"): _when(job.get(name)) for name in ("create_time", "start_time", "end_time")}
    facts = {
        "id": job["id"],
        "state": job["state"],
        **job["spec"],
        "error": (job.get("error") or {}).get("message"),
        **times,
    }
    context.output.facts(facts | (job.get("result") or {}))
    return 0


def _watch(context: Context, arguments: argparse.Namespace) -> int:
    return _follow(context, _bare(arguments.id))


def _cancel(context: Context, arguments: argparse.Namespace) -> int:
    job = context.gateway.call("POST", f"{_JOBS}/{_bare(arguments.id)}/cancel")
    context.output.result(job, escape(_line(job)))
    return 0


def _follow(context: Context, job_id: str) -> int:
    """Print the job each time something changed; returns the command's exit code."""
    job: dict[str, Any] = {}
    for job in _changes(context.gateway, job_id):
        context.output.result(job, escape(_line(job)))
    return 0 if job["state"] == "SUCCEEDED" else 1


def _changes(gateway: Gateway, job_id: str) -> Iterator[dict[str, Any]]:
    """The job as it is now, and again each time its line changed; ends when it is over."""
    last = ""
    while True:
        job = _get(gateway, job_id)
        if _line(job) != last:
            last = _line(job)
            yield job
        if job["state"] in _OVER:
            return
        time.sleep(POLL_SECONDS)


def _line(job: dict[str, Any]) -> str:
    """The state in one line of plain text."""
    result, phase = job.get("result") or {}, (job.get("progress") or {}).get("phase")
    text = f"{job['id']}: {job['state'].lower()}"
    if job["state"] == "RUNNING" and phase:
        text += f", {phase}"
    if result.get("merged_model"):
        text += f", {result['merged_model']} (mean difference {result.get('mean_logprob_difference', 0):.4g} nats)"
    error = (job.get("error") or {}).get("message")
    return f"{text}, {error}" if error else text


def _get(gateway: Gateway, identifier: str) -> dict[str, Any]:
    return gateway.call("GET", f"{_JOBS}/{_bare(identifier)}")


def _bare(identifier: str) -> str:
    return identifier.removeprefix("mergeJobs/")


def _when(text: str | None) -> str:
    return when(datetime.fromisoformat(text).timestamp()) if text else ""
