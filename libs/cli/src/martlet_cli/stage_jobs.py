"""``list|show|watch|cancel|pause|resume`` for the kinds of jobs that have routes of Martlet's own: merges, quantizations,
evaluations. A command gives its columns and its line; the rest is the same for all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from martlet_cli.commands.files import when
from martlet_cli.context import Context, Handler, Subparsers, command
from martlet_cli.gateway import Gateway
from martlet_cli.output import Output
from martlet_cli.watch import POLL_SECONDS, QUIET_SECONDS

#: Commands of such a group; anything else behind its name is something to create a job for.
COMMANDS = ("create", "list", "show", "watch", "cancel", "pause", "resume")
_OVER = ("SUCCEEDED", "FAILED", "CANCELLED")

Job = dict[str, Any]


def _no_outcome(job: Job) -> str:
    return ""


@dataclass(frozen=True)
class StageJobs:
    """A kind of job, as its commands show it.

    Attributes:
        verb: the group's name (``quantize``).
        noun: for people (``quantization``).
        path: of its routes behind ``/v1/martlet``.
        collection: first part of its resource names.
        columns: of the list, beside id, state and creation; each with where its value comes from.
        outcome: what a job that is over says in a line; empty for nothing.
        describe: prints more than facts in ``show``; None for nothing more.
        can_pause: whether it can be paused and resumed.
    """

    verb: str
    noun: str
    path: str
    collection: str
    columns: Mapping[str, Callable[[Job], Any]]
    outcome: Callable[[Job], str] = _no_outcome
    describe: Callable[[Output, Job], None] | None = None
    can_pause: bool = True

    def add(self, commands: Subparsers) -> None:
        """Add the commands that look at jobs and steer them."""
        listing = command(commands, "list", self._list, f"list {self.noun} jobs, newest first")
        listing.add_argument("--limit", type=int, default=20, help="most jobs to show (default 20)")
        steering: Sequence[tuple[str, Handler, str]] = (
            ("show", self._show, f"show a {self.noun} job: state, what was asked for, what came of it"),
            ("watch", self._watch, f"follow a {self.noun} job until it is over"),
            ("cancel", self._steer("cancel"), f"stop a {self.noun} job for good"),
        )
        if self.can_pause:
            steering = (
                *steering,
                ("pause", self._steer("pause"), "keep what can be kept and give the worker back"),
                ("resume", self._steer("resume"), "queue a paused job again"),
            )
        for name, handler, help in steering:
            command(commands, name, handler, help).add_argument("id", help="the job's id")

    def create(self, context: Context, body: Mapping[str, Any], *, watch: bool) -> int:
        """Create a job, and follow it if that is wanted; returns the command's exit code."""
        job = context.gateway.call("POST", f"/{self.path}", json=dict(body))
        if watch:
            return self._follow(context, job["id"])
        context.output.result(job, escape(self.line(job)))
        if not context.output.as_json:
            context.output.say(f"follow it: martlet {self.verb} watch {job['id']}")
        return 0

    def line(self, job: Job) -> str:
        """The state in one line of plain text."""
        progress = job.get("progress") or {}
        text = f"{job['id']}: {job['state'].lower()}"
        if job["state"] == "QUEUED" and progress.get("queue_position"):
            text += f", place {progress['queue_position']}"
        if job["state"] == "QUEUED" and progress.get("queued_reason"):
            text += f", {progress['queued_reason']}"
        if job["state"] == "RUNNING" and progress.get("phase"):
            text += f", {progress['phase']}"
            if progress.get("total_steps"):
                text += f" {progress['step']}/{progress['total_steps']}"
        if outcome := self.outcome(job):
            text += f", {outcome}"
        error = (job.get("error") or {}).get("message")
        return f"{text}, {error}" if error else text

    def _list(self, context: Context, arguments: argparse.Namespace) -> int:
        jobs = context.gateway.call("GET", f"/{self.path}", params={"limit": arguments.limit})["data"]
        if context.output.as_json:
            context.output.json(jobs)
            return 0
        rows = [
            job
            | {name: value(job) for name, value in self.columns.items()}
            | {"created": local_time(job.get("create_time"))}
            for job in jobs
        ]
        columns = ("id", "state", *self.columns, "created")
        empty = f"no {self.noun} jobs yet; `martlet {self.verb} MODEL` makes one"
        context.output.table(rows, columns, empty=empty)
        return 0

    def _show(self, context: Context, arguments: argparse.Namespace) -> int:
        job = self._get(context.gateway, arguments.id)
        if context.output.as_json:
            context.output.json(job)
            return 0
        times = {name.removesuffix("_time"): local_time(job.get(name)) for name in _TIMES}
        result = job.get("result") or {}
        plain = {name: value for name, value in result.items() if not isinstance(value, list | dict)}
        facts = {
            "id": job["id"],
            "state": job["state"],
            **job["spec"],
            "error": (job.get("error") or {}).get("message"),
        }
        context.output.facts(facts | times | plain)
        if self.describe is not None:
            self.describe(context.output, job)
        return 0

    def _watch(self, context: Context, arguments: argparse.Namespace) -> int:
        return self._follow(context, self._bare(arguments.id))

    def _steer(self, verb: str) -> Handler:
        def handler(context: Context, arguments: argparse.Namespace) -> int:
            job = context.gateway.call("POST", f"/{self.path}/{self._bare(arguments.id)}/{verb}")
            context.output.result(job, escape(self.line(job)))
            return 0

        return handler

    def _follow(self, context: Context, job_id: str) -> int:
        """Show the job until it is over: a moving line for a person, lines for a pipe; returns the command's exit code."""
        output, job = context.output, {}
        with _Status(output) as status:
            for job in self._changes(context.gateway, job_id):
                status.show(job, self.line(job))
        if self.describe is not None and job["state"] == "SUCCEEDED" and not output.as_json:
            self.describe(output, job)
        return 0 if job["state"] == "SUCCEEDED" else 1

    def _changes(self, gateway: Gateway, job_id: str) -> Iterator[Job]:
        """The job as it is now, and again each time its line changed; ends when it is over."""
        last = ""
        while True:
            job = self._get(gateway, job_id)
            if self.line(job) != last:
                last = self.line(job)
                yield job
            if job["state"] in _OVER:
                return
            time.sleep(POLL_SECONDS)

    def _get(self, gateway: Gateway, identifier: str) -> Job:
        return gateway.call("GET", f"/{self.path}/{self._bare(identifier)}")

    def _bare(self, identifier: str) -> str:
        return identifier.removeprefix(f"{self.collection}/")


class _Status:
    """A job's line: drawn anew on a terminal; elsewhere printed when its state or phase changes, and now and then."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=output.console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._seen: tuple[str, str] | None = None
        self._said_at = 0.0

    def __enter__(self) -> _Status:
        if self._output.live:
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._output.live:
            self._bar.stop()

    def show(self, job: Job, line: str) -> None:
        """Say how the job is doing; its end stays on the screen."""
        if self._task is not None and job["state"] not in _OVER:
            self._bar.update(self._task, description=escape(line))
            return
        seen = (job["state"], (job.get("progress") or {}).get("phase") or "")
        if seen == self._seen and time.monotonic() - self._said_at < QUIET_SECONDS:
            return
        self._seen, self._said_at = seen, time.monotonic()
        self._output.result(job, escape(line))


_TIMES = ("create_time", "start_time", "end_time")


def local_time(text: str | None) -> str:
    """An RFC 3339 time for people."""
    return when(datetime.fromisoformat(text).timestamp()) if text else ""


def asked(**values: Any) -> dict[str, Any]:
    """A specification of what was given: None, and objects of nothing, are left out."""
    kept = {name: asked(**value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in kept.items() if value not in (None, {}, [])}
