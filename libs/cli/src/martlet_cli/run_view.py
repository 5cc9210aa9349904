"""A run to look at: a live table of its steps on a terminal, a line a change elsewhere, JSON lines for programs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from martlet_cli.gateway import Gateway
from martlet_cli.output import Output, duration
from martlet_cli.watch import POLL_SECONDS, QUIET_SECONDS

RUNS = "/runs"
OVER = ("SUCCEEDED", "FAILED", "CANCELLED")
_FINAL = (*OVER, "SKIPPED")
_LOOK = {
    "WAITING": ("○", "dim"),
    "QUEUED": ("◌", "yellow"),
    "RUNNING": ("●", "cyan"),
    "PAUSED": ("‖", "magenta"),
    "PAUSING": ("‖", "magenta"),
    "SUCCEEDED": ("✓", "green"),
    "FAILED": ("✗", "red"),
    "SKIPPED": ("⊘", "dim"),
    "CANCELLED": ("⊘", "yellow"),
    "CANCELLING": ("⊘", "yellow"),
}
_BAR_CELLS = 18


def changes(gateway: Gateway, run_id: str) -> Iterator[dict[str, Any]]:
    """The run as it is now, and again each time it changed; ends when it is over, or paused."""
    last: dict[str, Any] | None = None
    while True:
        run = gateway.call("GET", f"{RUNS}/{run_id}")
        if run != last:
            yield run
        if run["state"] in (*OVER, "PAUSED"):
            return
        last = run
        time.sleep(POLL_SECONDS)


def follow(gateway: Gateway, run_id: str, output: Output) -> dict[str, Any]:
    """Show a run until it is over; returns it as it is then."""
    run: dict[str, Any] = {}
    if output.live:
        with Live(console=output.console, refresh_per_second=8, transient=True) as live:
            for run in changes(gateway, run_id):
                live.update(_Moving(run))
        output.console.print(picture(run))
        return run
    lines = _Lines(output)
    for run in changes(gateway, run_id):
        lines.update(run)
    return run


def conclude(output: Output, run: Mapping[str, Any]) -> int:
    """Say how a followed run ended; returns the command's exit code."""
    if run["state"] == "SUCCEEDED":
        for step in run["steps"]:
            alias = (step.get("outputs") or {}).get("alias")
            if alias:
                output.say(f'try it: martlet chat --model {escape(alias)} "…"')
        return 0
    if run["state"] == "PAUSED":
        output.say(f"paused; `martlet run resume {run['id']}` goes on")
        return 0
    output.say(f"[red]{run['state'].lower()}[/]" + (f": {escape(_error(run))}" if _error(run) else ""))
    if run["state"] == "FAILED":
        output.say(f"`martlet run resume {run['id']}` goes on at what failed")
    return 1


def picture(run: Mapping[str, Any], now: float | None = None) -> RenderableType:
    """The run and its steps, for a terminal."""
    now = time.time() if now is None else now
    done = sum(step["state"] == "SUCCEEDED" for step in run["steps"])
    _, style = _LOOK.get(run["state"], ("", ""))
    head = Text.assemble(
        (run["display_name"], "bold"),
        ("  " + run["id"], "dim"),
        ("  " + run["state"].lower(), style),
        (f"  {done}/{len(run['steps'])} steps", ""),
        (f"  {_spent(run, now)}", "dim"),
        (f"  resumed {run['resume_count']}x" if run.get("resume_count") else "", "magenta"),
    )
    table = Table.grid(padding=(0, 2))
    for column in ("mark", "step", "kind", "state", "time"):
        table.add_column(column, no_wrap=True, justify="right" if column == "time" else "left")
    table.add_column("what", overflow="fold", ratio=1)
    for step in run["steps"]:
        table.add_row(*_row(step, now))
    return Group(head, Text(""), table, Text(""))


class _Moving:
    """A picture that is drawn anew each time, so that clocks and spinners move between two looks at the run."""

    def __init__(self, run: Mapping[str, Any]) -> None:
        self._run = run

    def __rich__(self) -> RenderableType:
        return picture(self._run)


_SPINNER = Spinner("dots", style="cyan")


def _row(step: Mapping[str, Any], now: float) -> list[RenderableType]:
    mark, style = _LOOK.get(step["state"], ("?", ""))
    faded = "dim" if step["state"] in ("WAITING", "SKIPPED") else ""
    word = "reused" if step.get("reused") else step["state"].lower()
    return [
        _SPINNER if step["state"] == "RUNNING" else Text(mark, style),
        Text(step["id"], faded or "bold"),
        Text(step["kind"], "dim"),
        Text(word, style),
        Text(_spent(step, now), "dim" if step["state"] in _FINAL else ""),
        _what(step),
    ]


def _what(step: Mapping[str, Any]) -> RenderableType:
    """What there is to say of a step now: how far it is, what came of it, what keeps it."""
    progress = step.get("progress") or {}
    if step["state"] == "FAILED":
        return Text(_error(step), "red")
    if step["state"] == "SUCCEEDED":
        return Text(step.get("summary") or step.get("note") or "")
    if step.get("note"):
        return Text(step["note"], "dim" if step["state"] in ("SKIPPED", "CANCELLED") else "yellow")
    if step["state"] == "QUEUED" and progress.get("queued_reason"):
        return Text(progress["queued_reason"], "dim")
    if step["state"] == "QUEUED" and progress.get("queue_position"):
        return Text(f"place {progress['queue_position']} in the queue", "dim")
    if step["state"] == "RUNNING":
        return _progress(progress)
    if step["state"] == "WAITING" and step.get("needs"):
        return Text(f"after {', '.join(step['needs'])}", "dim")
    return Text("")


def _progress(progress: Mapping[str, Any]) -> RenderableType:
    words = []
    metrics = progress.get("metrics") or {}
    if progress.get("total_steps"):
        words.append(f"{progress.get('step', 0)}/{progress['total_steps']}")
    elif progress.get("phase"):
        words.append(progress["phase"])
    words += [f"{name} {metrics[name]:.4g}" for name in list(metrics)[:2] if isinstance(metrics[name], int | float)]
    if progress.get("eta_seconds"):
        words.append(f"{duration(progress['eta_seconds'])} left")
    text = Text(", ".join(words))
    if not progress.get("total_steps"):
        return text
    grid = Table.grid(padding=(0, 1))
    grid.add_row(
        ProgressBar(total=1.0, completed=progress.get("fraction", 0.0), width=_BAR_CELLS, complete_style="cyan"), text
    )
    return grid


class _Lines:
    """One line a change of a step's state, and now and then one for what it is doing."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._states: dict[str, str] = {}
        self._said_at = 0.0

    def update(self, run: Mapping[str, Any]) -> None:
        """Print what changed."""
        states = {step["id"]: step["state"] for step in run["steps"]} | {"": run["state"]}
        moved = [name for name, state in states.items() if self._states.get(name) != state]
        quiet = time.monotonic() - self._said_at < QUIET_SECONDS
        if self._output.as_json:
            if moved or not quiet:
                self._output.json(run)
                self._said_at = time.monotonic()
        else:
            for step in run["steps"]:
                if step["id"] in moved and (step["state"] != "WAITING" or self._states):
                    self._output.console.print(line(step), markup=False)
            if "" in moved:
                self._output.console.print(f"{run['id']}: {run['state'].lower()}", markup=False)
        self._states = states


def line(step: Mapping[str, Any]) -> str:
    """A step in one line of plain text."""
    parts = [f"{step['id']}: {'reused' if step.get('reused') else step['state'].lower()}"]
    parts += [step["summary"]] if step.get("summary") else []
    parts += [_error(step)] if step["state"] == "FAILED" else []
    parts += [step["note"]] if step.get("note") and step["state"] == "SKIPPED" else []
    parts += [_spent(step, time.time())] if step["state"] in OVER and _spent(step, time.time()) else []
    return ", ".join(parts)


def seconds_of(thing: Mapping[str, Any], now: float) -> float | None:
    """Seconds that a run or a step has taken, or is taking; None before it began."""
    begun = thing.get("start_time")
    if not begun:
        return None
    return max(0.0, (_time(thing["end_time"]) if thing.get("end_time") else now) - _time(begun))


def _spent(thing: Mapping[str, Any], now: float) -> str:
    return duration(seconds_of(thing, now))


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _error(thing: Mapping[str, Any]) -> str:
    return str((thing.get("error") or {}).get("message") or "")
