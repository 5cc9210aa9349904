"""``report open JOB``: the report of an evaluation or a quantization, downloaded and opened in the browser."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path
from typing import Any

from martlet_core.errors import FailedPrecondition, NotFound
from rich.markup import escape

from martlet_cli.commands.artifacts import download_files
from martlet_cli.context import Context, Subparsers, command, group

#: Stages whose jobs leave a report, in the order in which a bare id is looked up.
_STAGES = ("evaluation", "quantization")
#: Pages that people read, by preference.
_PAGES = ("report.html", "report.md")


def add(subparsers: Subparsers) -> None:
    """Add the group."""
    commands = group(subparsers, "report", "what evaluations and quantizations found")
    add_arguments(command(commands, "open", open_report, "download a job's report and open it in the browser"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``open_report``."""
    parser.add_argument("id", help="the job's id")
    parser.add_argument("--out", type=Path, help="directory to put it into (default: report-<id>)")
    parser.add_argument("--no-open", action="store_true", help="only download it")


def open_report(context: Context, arguments: argparse.Namespace) -> int:
    """Download a report; open it where there is a person to read it. FailedPrecondition if the job has none yet."""
    job = _find(context, arguments.id)
    artifact = (job.get("result") or {}).get("report_artifact")
    if not artifact:
        raise FailedPrecondition(f"{job['id']} is {job['state'].lower()} and has no report yet")
    directory = arguments.out or Path(f"report-{job['id']}")
    download_files(context, artifact, directory)
    page = next((directory / name for name in _PAGES if (directory / name).is_file()), directory)
    context.output.result({"report": str(page)}, escape(str(page)))
    if page.is_file() and not arguments.no_open and context.output.live:
        webbrowser.open(page.resolve().as_uri())
    return 0


def _find(context: Context, asked: str) -> dict[str, Any]:
    """The job; NotFound if no stage that writes reports has it."""
    kind, _, job_id = asked.rpartition("/")
    missing: NotFound | None = None
    for stage in _STAGES:
        if kind in ("", f"{stage}Jobs"):
            try:
                return context.gateway.call("GET", f"/{stage}/jobs/{job_id}")
            except NotFound as error:
                missing = missing or error
    raise missing or NotFound(f"{asked} is no job of evaluation or quantization.", reason="JOB_NOT_FOUND")
