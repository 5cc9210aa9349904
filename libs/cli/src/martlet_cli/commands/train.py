"""``train``: SWIFT's arguments, made into a fine-tuning job."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from martlet_core.errors import InvalidArgument
from martlet_core.model_rules import parse_hub_id
from rich.markup import escape

from martlet_cli import swift_arguments
from martlet_cli.commands.files import file_id
from martlet_cli.context import Context, Subparsers, command
from martlet_cli.gateway import translated
from martlet_cli.watch import conclude, follow

_EXAMPLE = """example:
  martlet train --model smollm2-135m-instruct --dataset rows.jsonl --tuner_type lora --lora_rank 8 \\
      --learning_rate 2e-4 --num_train_epochs 1 --watch"""


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = command(subparsers, "train", _train, "fine-tune a model; takes SWIFT's argument names", epilog=_EXAMPLE)
    swift_arguments.add_arguments(parser)
    parser.add_argument("--watch", action="store_true", help="follow the job until it is over")


def _train(context: Context, arguments: argparse.Namespace) -> int:
    body = swift_arguments.request(arguments)
    if not arguments.dataset:
        raise InvalidArgument.field("--dataset", "is required: a local file, or the id of an uploaded one")
    lenient = arguments.strict is False
    extension = body.pop("martlet", {})
    samples = _samples(context, arguments.dataset, lenient, arguments.use_hf)
    body["training_file"] = samples[0]["dataset"]
    if len(samples) > 1 or "count" in samples[0]:
        extension["training_datasets"] = samples
    if arguments.val_dataset:
        body["validation_file"] = _file_id(context, "--val_dataset", arguments.val_dataset, lenient)
    with translated():
        job = context.gateway.openai.fine_tuning.jobs.create(
            **body, extra_body={"martlet": extension} if extension else None
        )
    if not arguments.watch:
        context.output.result(job.model_dump(), f"{job.id}: {job.status}")
        if not context.output.as_json:
            context.output.say(f"follow it: martlet jobs watch {job.id}")
        return 0
    context.output.say(f"job {escape(job.id)}")
    return conclude(context.output, follow(context.gateway, job.id, context.output))


def _samples(context: Context, values: list[str], lenient: bool, use_hf: bool | None) -> list[dict[str, Any]]:
    """The data sets to train on, and how many rows of each."""
    samples: list[dict[str, Any]] = []
    for value in values:
        name, count = swift_arguments.sampled(value)
        hub = swift_arguments.hub_id(name, use_hf)
        of_hub = hub.startswith(("hf:", "ms:")) and parse_hub_id(hub) is not None
        dataset = hub if of_hub else file_id(context, "--dataset", name, lenient=lenient)
        samples.append({"dataset": dataset, "name": Path(name).name} | ({"count": count} if count is not None else {}))
    return samples


def _file_id(context: Context, flag: str, values: list[str], lenient: bool) -> str:
    """The id of the one data set that was named."""
    return file_id(context, flag, swift_arguments.one_dataset(flag, values), lenient=lenient)
