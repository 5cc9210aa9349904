"""``merge create|list|show|watch|cancel``: adapters folded into their base models."""

from __future__ import annotations

import argparse
from typing import Any

from martlet_cli.context import Context, Subparsers, command, group
from martlet_cli.stage_jobs import StageJobs, asked


def _outcome(job: dict[str, Any]) -> str:
    result = job.get("result") or {}
    if not result.get("merged_model"):
        return ""
    return f"{result['merged_model']} (mean difference {result.get('mean_logprob_difference', 0):.4g} nats)"


_JOBS = StageJobs(
    verb="merge",
    noun="merge",
    path="merge/jobs",
    collection="mergeJobs",
    columns={
        "adapter": lambda job: job["spec"]["adapter"],
        "merged_model": lambda job: (job.get("result") or {}).get("merged_model"),
    },
    outcome=_outcome,
    can_pause=False,
)


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
    _JOBS.add(commands)


def _create(context: Context, arguments: argparse.Namespace) -> int:
    spec = asked(adapter=arguments.adapter, precision=arguments.precision, suffix=arguments.suffix)
    return _JOBS.create(context, {"spec": spec}, watch=arguments.watch)
