"""``models`` and ``merge``: names that answer, and adapters folded into their base."""

from __future__ import annotations

import argparse
import time
from typing import Any

from rich.markup import escape

from martlet_cli.commands.files import when
from martlet_cli.context import Context, Subparsers, command
from martlet_cli.gateway import Gateway, translated
from martlet_cli.watch import POLL_SECONDS

_OVER = ("SUCCEEDED", "FAILED", "CANCELLED")


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    command(subparsers, "models", _models, "list the models that answer to this key")
    merge = command(
        subparsers,
        "merge",
        _merge,
        "fold an adapter into its base model; the result is compared before it is published",
    )
    merge.add_argument("adapter", help="a fine-tuned model's name, or artifacts/<id>")
    merge.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="storage of the weights (default: the base's)",
    )
    merge.add_argument("--suffix", help="part of the merged model's name")
    merge.add_argument("--watch", action="store_true", help="wait until the job is over")


def _models(context: Context, arguments: argparse.Namespace) -> int:
    with translated():
        models = [model.model_dump() for model in context.gateway.openai.models.list().data]
    rows = [model | (model.get("martlet") or {}) | {"created": when(model["created"])} for model in models]
    if context.output.as_json:
        context.output.json(models)
    else:
        context.output.table(rows, ("id", "kind", "base_model", "owned_by", "created"), empty="no model answers yet")
    return 0


def _merge(context: Context, arguments: argparse.Namespace) -> int:
    spec = {"adapter": arguments.adapter, "precision": arguments.precision, "suffix": arguments.suffix}
    body = {"spec": {name: value for name, value in spec.items() if value is not None}}
    job = context.gateway.call("POST", "/merge/jobs", json=body)
    if arguments.watch:
        job = _until_over(context.gateway, job)
    result = job.get("result") or {}
    text = f"{job['name']}: {job['state']}"
    if result.get("merged_model"):
        text += f", {result['merged_model']} (mean difference {result.get('mean_logprob_difference', 0):.4g} nats)"
    error = (job.get("error") or {}).get("message")
    context.output.result(job, escape(text + (f": {error}" if error else "")))
    return 1 if job["state"] in ("FAILED", "CANCELLED") else 0


def _until_over(gateway: Gateway, job: dict[str, Any]) -> dict[str, Any]:
    identifier = job["name"].rpartition("/")[2]
    while job["state"] not in _OVER:
        time.sleep(POLL_SECONDS)
        job = gateway.call("GET", f"/merge/jobs/{identifier}")
    return job
