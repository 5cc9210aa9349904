"""Follow a job to its end: a bar that moves on a terminal, a line a change elsewhere, JSON lines for programs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from martlet_cli.gateway import Gateway, translated
from martlet_cli.output import Output, duration

FINAL_STATUSES = ("succeeded", "failed", "cancelled")
#: Seconds between two looks at a job.
POLL_SECONDS = 0.5
#: Without a terminal: seconds between two lines while nothing but the step changes.
QUIET_SECONDS = 5.0


@dataclass(frozen=True)
class JobView:
    """What there is to see of a fine-tuning job.

    Attributes:
        id: of the job.
        status: as OpenAI names it, ``paused`` and ``pausing`` beside.
        step: steps done.
        total_steps: steps planned; 0 while unknown.
        metrics: newest values by name.
        eta_seconds: estimated time to the end.
        phase: what the worker is doing.
        queue_position: from 1; 0 when not queued.
        queued_reason: why it waits although it is the first of its queue; empty otherwise.
        fine_tuned_model: its name, once the job has succeeded.
        error: why it failed.
        raw: the job as the gateway sent it.
    """

    id: str
    status: str
    step: int = 0
    total_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    eta_seconds: float | None = None
    phase: str = ""
    queue_position: int = 0
    queued_reason: str = ""
    fine_tuned_model: str = ""
    error: str = ""
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Nothing more will happen, or not before someone resumes it."""
        return self.status in (*FINAL_STATUSES, "paused")

    def line(self) -> str:
        """The state in one line of plain text."""
        parts = [self.status]
        if self.status == "queued" and self.queue_position:
            parts.append(f"place {self.queue_position} in the queue")
        if self.status == "queued" and self.queued_reason:
            parts.append(self.queued_reason)
        if self.status == "running" and self.phase and not self.step:
            parts.append(self.phase)
        if self.total_steps:
            parts.append(f"step {self.step}/{self.total_steps}")
        parts += [numbers] if (numbers := self.numbers()) else []
        parts += [self.fine_tuned_model] if self.fine_tuned_model else []
        parts += [self.error] if self.error else []
        return ", ".join(parts)

    def numbers(self) -> str:
        """Loss, speed and time to the end."""
        texts = []
        if "loss" in self.metrics:
            texts.append(f"loss {self.metrics['loss']:.4f}")
        if "tokens_per_second" in self.metrics:
            texts.append(f"{self.metrics['tokens_per_second']:.0f} tokens/s")
        if self.eta_seconds and self.status == "running":
            texts.append(f"{duration(self.eta_seconds)} left")
        return ", ".join(texts)


def view(job: dict[str, Any]) -> JobView:
    """A fine-tuning job out of the gateway's answer; what OpenAI has no field for is under ``martlet``."""
    extension = job.get("martlet") or {}
    progress = extension.get("progress") or {}
    error = job.get("error") or {}
    return JobView(
        id=job["id"],
        status=job["status"],
        step=int(progress.get("step") or 0),
        total_steps=int(progress.get("total_steps") or 0),
        metrics=progress.get("metrics") or {},
        eta_seconds=progress.get("eta_seconds"),
        phase=progress.get("phase") or "",
        queue_position=int(extension.get("queue_position") or progress.get("queue_position") or 0),
        queued_reason=progress.get("queued_reason") or "",
        fine_tuned_model=job.get("fine_tuned_model") or "",
        error=(error.get("message") or "") if error else "",
        raw=job,
    )


def views(gateway: Gateway, job_id: str, poll_seconds: float = POLL_SECONDS) -> Iterator[JobView]:
    """The job as it is now, and again each time it changed; ends when it is over."""
    last = None
    while True:
        with translated():
            seen = view(gateway.openai.fine_tuning.jobs.retrieve(job_id).model_dump())
        if seen != last:
            yield seen
        if seen.is_over:
            return
        last = seen
        time.sleep(poll_seconds)


def follow(gateway: Gateway, job_id: str, output: Output) -> JobView:
    """Show a job until it is over; returns it as it is then."""
    seen = JobView(job_id, "unknown")
    with _Bar(output) if output.live else _Lines(output) as show:
        for seen in views(gateway, job_id):
            show.update(seen)
    return seen


class _Lines:
    """One line a change of status, and now and then one for the steps in between."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._last: JobView | None = None
        self._said_at = 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_exc: object) -> None:
        return

    def update(self, seen: JobView) -> None:
        """Print the job unless nothing but the step changed since a moment ago."""
        last = self._last
        changed = last is None or (seen.status, seen.error, seen.queued_reason) != (
            last.status,
            last.error,
            last.queued_reason,
        )
        if not changed and not seen.is_over and time.monotonic() - self._said_at < QUIET_SECONDS:
            return
        self._last, self._said_at = seen, time.monotonic()
        if self._output.as_json:
            self._output.json(seen.raw)
        else:
            self._output.console.print(f"{seen.id}: {seen.line()}", markup=False)


class _Bar:
    """A bar with step, loss, tokens/s and time left."""

    def __init__(self, output: Output) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            console=output.console,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._progress.stop()

    def update(self, seen: JobView) -> None:
        """Move the bar."""
        words = seen.phase if seen.status == "running" and seen.phase else seen.status
        if seen.status == "queued" and seen.queue_position:
            words = seen.queued_reason or f"queued, place {seen.queue_position}"
        if self._task is None:
            self._task = self._progress.add_task(words, total=None, numbers="")
        self._progress.update(
            self._task,
            description=words,
            completed=seen.step,
            total=seen.total_steps or None,
            numbers=escape(seen.numbers()),
        )


def conclude(output: Output, seen: JobView) -> int:
    """Say how a followed job ended; returns the command's exit code."""
    if seen.status == "succeeded":
        output.say(f"[green]succeeded[/]: {escape(seen.fine_tuned_model)}")
        output.say(f'try it: martlet chat --model {escape(seen.fine_tuned_model)} "…"')
        return 0
    if seen.status == "paused":
        output.say(f"paused; `martlet jobs resume {seen.id}` goes on from its last checkpoint")
        return 0
    output.say(f"[red]{seen.status}[/]" + (f": {escape(seen.error)}" if seen.error else ""))
    return 1
