"""``bench techniques``: ways of training compared on the same work, with a report."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from martlet_core.errors import InvalidArgument
from rich.markup import escape

from martlet_cli.commands.files import dataset_once
from martlet_cli.context import Context, Subparsers, command, group
from martlet_cli.techniques import report
from martlet_cli.techniques.bench import Budget, Measured, carry_out
from martlet_cli.techniques.catalog import chosen, known

_EXAMPLE = """example:
  python examples/headlines/prepare.py --out rows
  martlet bench techniques --train rows/train.jsonl --test rows/test.jsonl --techniques lora dora full --out techniques

a command that was interrupted goes on where it was when it is given again: its parts are jobs"""


class _Known:
    """The names of our techniques as a text; their table is read when that is shown, and not at every start of the command."""

    def __str__(self) -> str:
        return ", ".join(known())


def add(subparsers: Subparsers) -> None:
    """Add the group."""
    commands = group(subparsers, "bench", "measurements of the platform's own work")
    parser = command(
        commands,
        "techniques",
        _techniques,
        "train by each technique on the same model, rows, budget and seeds, measure, and write the report",
        epilog=_EXAMPLE,
    )
    parser.add_argument("--train", required=True, help="rows to train on: a local file or the id of an uploaded one")
    parser.add_argument("--test", required=True, help="held-out rows, whose answers are judged: likewise")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="base model (default smollm2-135m-instruct)")
    named = parser.add_argument("--techniques", nargs="+", metavar="NAME", help="some of %(known)s (default: all)")
    vars(named)["known"] = _Known()
    parser.add_argument("--file", type=Path, help="TOML with techniques of your own, in the form of ours")
    parser.add_argument("--suite", choices=("classification", "exact_match"), default="classification")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="optimizer steps of each (default 60)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="rows a step (default 16)")
    parser.add_argument(
        "--learning-rate", type=float, default=1e-3, help="LoRA's; others by their factor (default 1e-3)"
    )
    parser.add_argument("--max-length", type=int, default=512, metavar="N", help="tokens of a row (default 512)")
    parser.add_argument("--max-rows", type=int, metavar="N", help="most test rows that are asked (default: all)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[7], metavar="N", help="seeds of the trainings (default 7)"
    )
    parser.add_argument(
        "--note",
        action="append",
        default=[],
        metavar="TEXT",
        help="what is to stand over the report, such as `machine: 16 cores, one H100`; may be given several times",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("techniques"), help="directory of the report (default techniques)"
    )


def _techniques(context: Context, arguments: argparse.Namespace) -> int:
    techniques = known(arguments.file)
    wanted = chosen(arguments.techniques, techniques)
    seeds = list(dict.fromkeys(arguments.seeds))
    budget = _budget(context, arguments)
    measured: list[Measured] = []
    about = {"date": datetime.now(UTC).date().isoformat(), **_notes(arguments.note)}
    for one in carry_out(context.gateway, context.output, budget, wanted, seeds):
        measured.append(one)
        if one.error:
            context.output.say(f"[red]{one.technique} failed[/]: {escape(one.error)}")
        report.write(arguments.out, budget, seeds, measured, techniques, about)
    found = report.lines(measured, techniques)
    rows = [report.cells(line) for line in found]
    if context.output.as_json:
        context.output.json([one.to_dict() for one in measured])
    else:
        context.output.table(rows, report.TITLES)
        context.output.say(f"the report: {escape(str(arguments.out / 'report.html'))}")
    return 1 if any(one.error for one in measured) else 0


def _notes(texts: list[str]) -> dict[str, str]:
    """Notes by what they are about."""
    found: dict[str, str] = {}
    for text in texts:
        about, colon, said = text.partition(":")
        if not (colon and about.strip() and said.strip()):
            raise InvalidArgument.field("--note", f"{text!r} must be like `machine: 16 cores, one H100`")
        found[about.strip()] = said.strip()
    return found


def _budget(context: Context, arguments: argparse.Namespace) -> Budget:
    for flag in ("steps", "batch_size", "max_length"):
        if getattr(arguments, flag) < 1:
            raise InvalidArgument.field(f"--{flag.replace('_', '-')}", "must be at least 1")
    if arguments.learning_rate <= 0:
        raise InvalidArgument.field("--learning-rate", "must be above 0")
    train, test = (dataset_once(context, f"--{name}", getattr(arguments, name)) for name in ("train", "test"))
    return Budget(
        base_model=arguments.model,
        training_dataset=train,
        test_dataset=test,
        suite=arguments.suite,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        max_length=arguments.max_length,
        max_rows=arguments.max_rows,
    )
