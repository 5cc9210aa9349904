"""``run submit|validate|list|show|watch|cancel|pause|resume``: small graphs of jobs from a YAML file."""

from __future__ import annotations

import argparse
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from martlet_core.errors import InvalidArgument
from rich.markup import escape
from rich.text import Text

from martlet_cli.commands.files import upload, when
from martlet_cli.context import Context, Handler, Subparsers, command, group
from martlet_cli.run_view import RUNS, conclude, follow, line, picture

_EXAMPLE = """example:
  martlet run submit examples/lifecycle.yaml --input train_data=@train.jsonl --watch

an input's value of the form @PATH is a file: it is uploaded, and the input is its artifact"""
_PLACE = re.compile(r"line (\d+), column (\d+): (.*?)(?: \([\w.\[\]-]+\))?", re.DOTALL)


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    commands = group(
        subparsers, "run", "chains of jobs from a YAML file: train, merge, quantize, evaluate, gate, deploy"
    )
    submit = command(commands, "submit", _submit, "check a definition and start the run", epilog=_EXAMPLE)
    _definition(submit)
    submit.add_argument("--reuse", action="store_true", help="let earlier results of the same work stand for steps")
    submit.add_argument("--watch", action="store_true", help="follow the run until it is over")
    validate = command(commands, "validate", _validate, "check a definition and start nothing", epilog=_EXAMPLE)
    _definition(validate)
    listing = command(commands, "list", _list, "list runs, newest first")
    listing.add_argument("--limit", type=int, default=20, help="most runs to show (default 20)")
    for name, handler, help in (
        ("show", _show, "show a run: its steps, what came of them, its events"),
        ("watch", _watch, "follow a run until it is over"),
        ("cancel", _steer("cancel"), "stop a run and the jobs of its steps for good"),
        ("pause", _steer("pause"), "pause the jobs of its steps, and begin none"),
        ("resume", _steer("resume"), "let a paused run go on; have a failed one try again what failed"),
    ):
        command(commands, name, handler, help).add_argument("id", help="the run's id")


def _definition(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the definition (YAML or JSON)")
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=VALUE", help="value of an input; may be repeated"
    )


def _submit(context: Context, arguments: argparse.Namespace) -> int:
    run = _send(context, arguments, reuse=True if arguments.reuse else None)
    if arguments.watch:
        context.output.say(f"run {escape(run['id'])}")
        return conclude(context.output, follow(context.gateway, run["id"], context.output))
    context.output.result(run, f"{run['id']}: {run['state'].lower()}")
    if not context.output.as_json:
        context.output.say(f"follow it: martlet run watch {run['id']}")
    return 0


def _validate(context: Context, arguments: argparse.Namespace) -> int:
    run = _send(context, arguments, validate_only=True)
    steps = ", ".join(step["id"] for step in run["steps"])
    context.output.result(run, f"[green]ok[/]: {len(run['steps'])} steps: {escape(steps)}")
    return 0


def _send(context: Context, arguments: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Post a definition; what is wrong with it is shown in its own lines."""
    if not arguments.file.is_file():
        raise InvalidArgument(f"{arguments.file}: there is no such file", reason="FILE_NOT_FOUND")
    try:
        source = arguments.file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{arguments.file}: is not UTF-8 text ({error})", reason="INVALID_RUN") from error
    inputs = dict(_input(context, text) for text in arguments.input)
    body = {"source": source, "inputs": inputs} | {name: value for name, value in more.items() if value is not None}
    try:
        return context.gateway.call("POST", RUNS, json=body)
    except InvalidArgument as error:
        if error.reason != "INVALID_RUN" or context.output.as_json:
            raise
        shown = _shown(error.message, source)
        if not shown:
            raise
        context.output.remarks.print(*shown, sep="\n")
        count = "1 mistake" if len(shown) == 1 else f"{len(shown)} mistakes"
        raise InvalidArgument(f"{arguments.file}: {count}", reason=error.reason) from error


def _input(context: Context, text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise InvalidArgument.field("--input", f"{text!r} isn't of the form NAME=VALUE")
    if not value.startswith("@"):
        return name, value
    made = upload(context, Path(value[1:]))
    context.output.say(f"uploaded {escape(value[1:])} as {made['id']}")
    return name, "artifacts/" + made["id"].removeprefix("file-")


def _shown(message: str, source: str) -> list[Text]:
    """Each mistake under the line that it is in; empty if the message names no lines."""
    lines = source.splitlines()
    shown = []
    for part in message.split("\n"):
        found = _PLACE.fullmatch(part)
        if not found:
            continue
        number, column, text = int(found[1]), int(found[2]), found[3]
        written = lines[number - 1] if number <= len(lines) else ""
        gutter = f"{number:>4} │ "
        pointer = " " * (len(gutter) - 2) + "│ " + " " * (column - 1) + "^ "
        shown.append(Text.assemble((gutter, "dim"), written, "\n", (pointer, "red"), (text, "red")))
    return shown


def _list(context: Context, arguments: argparse.Namespace) -> int:
    runs = context.gateway.call("GET", RUNS, params={"limit": arguments.limit})["data"]
    if context.output.as_json:
        context.output.json(runs)
        return 0
    rows = [
        run
        | {
            "name": run["display_name"],
            "steps": f"{sum(s['state'] == 'SUCCEEDED' for s in run['steps'])}/{len(run['steps'])}",
            "now": ", ".join(s["id"] for s in run["steps"] if s["state"] in ("RUNNING", "QUEUED", "FAILED")),
            "created": when(datetime.fromisoformat(run["create_time"]).timestamp()),
        }
        for run in runs
    ]
    columns = ("id", "name", "state", "steps", "now", "created")
    context.output.table(rows, columns, empty="no runs yet; `martlet run submit FILE` makes one")
    return 0


def _show(context: Context, arguments: argparse.Namespace) -> int:
    run_id = _bare(arguments.id)
    run = context.gateway.call("GET", f"{RUNS}/{run_id}")
    events = context.gateway.call("GET", f"{RUNS}/{run_id}/events", params={"limit": 1000})["data"]
    output = context.output
    if output.as_json:
        output.json(run | {"events": events})
        return 0
    if output.console.is_terminal:
        output.console.print(picture(run))
    else:
        output.console.print(f"{run['id']}: {run['state'].lower()}, {run['display_name']}", markup=False)
        for step in run["steps"]:
            output.console.print(line(step), markup=False)
    made = [
        {"step": step["id"], "output": name, "value": value}
        for step in run["steps"]
        for name, value in (step.get("outputs") or {}).items()
    ]
    if made:
        output.console.print("[bold]outputs[/]")
        output.table(made, ("step", "output", "value"))
    if events:
        output.console.print("\n[bold]last events[/]")
        for event in events[-15:]:
            at = when(datetime.fromisoformat(event["create_time"]).timestamp())
            output.console.print(f"[dim]{at}[/] {escape(event['message'])}")
    return 0


def _watch(context: Context, arguments: argparse.Namespace) -> int:
    return conclude(context.output, follow(context.gateway, _bare(arguments.id), context.output))


def _steer(verb: str) -> Handler:
    def handler(context: Context, arguments: argparse.Namespace) -> int:
        run = context.gateway.call("POST", f"{RUNS}/{_bare(arguments.id)}/{verb}")
        context.output.result(run, f"{run['id']}: {run['state'].lower()}")
        return 0

    return handler


def _bare(identifier: str) -> str:
    return identifier.removeprefix("runs/")
