"""``jobs list|show|watch|cancel|pause|resume``: fine-tuning jobs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from rich.markup import escape

from martlet_cli.commands.files import when
from martlet_cli.context import Context, Handler, Subparsers, command, group
from martlet_cli.gateway import translated
from martlet_cli.output import Output, duration
from martlet_cli.watch import conclude, follow, view

#: Of the settings, those that are shown with the job itself.
_SHOWN_ABOVE = ("base_model", "training_dataset", "validation_dataset")
_ISSUES_SHOWN = 10


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    commands = group(subparsers, "jobs", "list, watch and steer fine-tuning jobs")
    listing = command(commands, "list", _list, "list jobs, newest first")
    listing.add_argument("--limit", type=int, default=20, help="most jobs to show (default 20)")
    _with_id(
        command(commands, "show", _show, "show a job: state, progress, settings, data report, checkpoints, events")
    )
    _with_id(command(commands, "watch", _watch, "follow a job until it is over"))
    _with_id(command(commands, "cancel", _steer("cancel"), "stop a job for good"))
    _with_id(command(commands, "pause", _steer("pause"), "write a checkpoint and give the worker back"))
    _with_id(command(commands, "resume", _steer("resume"), "queue a paused job again; it goes on from its checkpoint"))


def _with_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the job's id")


def _list(context: Context, arguments: argparse.Namespace) -> int:
    with translated():
        jobs = context.gateway.openai.fine_tuning.jobs.list(limit=arguments.limit)
    rows = [_row(job.model_dump()) for job in jobs.data]
    if context.output.as_json:
        context.output.json([job.model_dump() for job in jobs.data])
    else:
        columns = ("id", "status", "progress", "model", "fine_tuned_model", "created")
        context.output.table(rows, columns, empty="no jobs yet; `martlet train` makes one")
    return 0


def _row(job: dict[str, Any]) -> dict[str, Any]:
    seen = view(job)
    progress = f"{seen.step}/{seen.total_steps}" if seen.total_steps else ""
    if seen.status == "queued" and seen.queue_position:
        progress = f"place {seen.queue_position}"
    return job | {"progress": progress, "created": when(job["created_at"])}


def _show(context: Context, arguments: argparse.Namespace) -> int:
    with translated():
        client = context.gateway.openai.fine_tuning.jobs
        job = client.retrieve(arguments.id).model_dump()
        events = [event.model_dump() for event in client.list_events(arguments.id, limit=20).data]
        checkpoints = [checkpoint.model_dump() for checkpoint in client.checkpoints.list(arguments.id).data]
    output = context.output
    if output.as_json:
        output.json(job | {"events": events, "checkpoints": checkpoints})
        return 0
    seen, extension = view(job), job.get("martlet") or {}
    spent = job["finished_at"] - job["created_at"] if job.get("finished_at") else None
    shown = {
        "id": seen.id,
        "status": seen.status,
        "progress": seen.line().partition(", ")[2],
        "model": job["model"],
        "fine_tuned_model": seen.fine_tuned_model,
        "error": seen.error,
        "training_file": job["training_file"],
        "validation_file": job.get("validation_file"),
        "created": when(job["created_at"]),
        "finished": when(job.get("finished_at")),
        "took": duration(spent),
        "trained_tokens": job.get("trained_tokens"),
        "device": extension.get("device"),
        "result_files": job.get("result_files"),
    }
    output.facts(shown)
    output.console.print("\n[bold]settings[/]")
    output.facts(dict(_settings(job)), as_typed=True)
    _show_data(output, extension.get("result") or {})
    if checkpoints:
        output.console.print("\n[bold]checkpoints[/]")
        rows = [checkpoint | checkpoint["metrics"] for checkpoint in checkpoints]
        output.table(rows, ("step_number", "train_loss", "valid_loss", "fine_tuned_model_checkpoint"))
    if events:
        output.console.print("\n[bold]last events[/]")
        for event in reversed(events):
            output.console.print(f"[dim]{when(event['created_at'])}[/] {event['level']:<5} {escape(event['message'])}")
    return 0


def _settings(job: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names: as the recipe filled them in, or as they were asked for while no worker has."""
    extension = job.get("martlet") or {}
    resolved = (extension.get("result") or {}).get("resolved_config")
    asked = {name: extension.get(name) for name in ("recipe", "tuner")} | {
        "hyperparameters": job.get("hyperparameters"),
        "seed": job.get("seed"),
    }
    for name, value in (resolved or asked).items():
        if name in _SHOWN_ABOVE:
            continue
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", _plain(number)) for inner, number in value.items())
        else:
            yield name, _plain(value)


def _plain(value: Any) -> Any:
    """Whole numbers as such: the contract's free-form fields know no integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _show_data(output: Output, result: dict[str, Any]) -> None:
    """What happened to the rows, once a worker has read them."""
    reports = {name: result[name] for name in ("training_data", "validation_data") if result.get(name)}
    if not reports:
        return
    output.console.print("\n[bold]data[/]")
    rows = [{"data": name.removesuffix("_data"), **report} for name, report in reports.items()]
    counts = ("rows_read", "rows_used", "rows_truncated", "rows_refused", "tokens", "loss_tokens")
    output.table(rows, ("data", "format", *counts))
    for name, report in reports.items():
        for issue in report.get("issues", [])[:_ISSUES_SHOWN]:
            place = f"{name.removesuffix('_data')} line {issue['line']}"
            field = f"{issue['field']}: " if issue["field"] else ""
            output.console.print(f"{place}: {field}{issue['message']}", markup=False)


def _watch(context: Context, arguments: argparse.Namespace) -> int:
    return conclude(context.output, follow(context.gateway, arguments.id, context.output))


def _steer(verb: str) -> Handler:
    def handler(context: Context, arguments: argparse.Namespace) -> int:
        with translated():
            job = getattr(context.gateway.openai.fine_tuning.jobs, verb)(arguments.id).model_dump()
        context.output.result(job, f"{job['id']}: {job['status']}")
        return 0

    return handler
