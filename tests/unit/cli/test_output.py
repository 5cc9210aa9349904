"""What is printed: tables and lines for people, JSON for programs, and a job's progress in words."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from martlet_cli.output import Output, duration, size
from martlet_cli.watch import _Lines, conclude, view
from rich.console import Console

ROWS = [
    {"id": "a1", "state": "ready", "port": 8000, "note": "[bold]x[/]"},
    {"id": "b", "state": "failed", "port": None},
]


def printed(as_json: bool = False, terminal: bool = False) -> tuple[Output, io.StringIO]:
    """An output and what it writes to."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, color_system=None, soft_wrap=not terminal)
    return Output(as_json, console, Console(file=io.StringIO())), stream


def job(**changes: Any) -> dict[str, Any]:
    """A fine-tuning job as the gateway sends it."""
    progress = {
        "step": 3,
        "total_steps": 10,
        "metrics": {"loss": 1.23456, "tokens_per_second": 321.7},
        "eta_seconds": 65.0,
        "phase": "training",
        "queue_position": 0,
    }
    return {"id": "ftjob-1", "status": "running", "martlet": {"progress": progress}, "error": None} | changes


def test_a_table_in_a_pipe_is_tab_separated() -> None:
    output, stream = printed()
    output.table(ROWS, ("id", "state", "port", "note"))
    assert stream.getvalue() == "id\tstate\tport\tnote\na1\tready\t8000\t[bold]x[/]\nb\tfailed\t\t\n"


def test_a_table_on_a_terminal_has_a_frame_and_shows_markup_as_it_is() -> None:
    output, stream = printed(terminal=True)
    output.table(ROWS, ("id", "note"), title="things")
    assert "things" in stream.getvalue()
    assert "[bold]x[/]" in stream.getvalue()
    assert "┃" in stream.getvalue()


def test_json_has_every_field_on_one_line() -> None:
    output, stream = printed(as_json=True)
    output.table(ROWS, ("id",))
    assert stream.getvalue().count("\n") == 1
    assert json.loads(stream.getvalue()) == ROWS


def test_an_empty_table_says_so_and_is_an_empty_list_as_json() -> None:
    output, stream = printed()
    output.table([], ("id",), empty="no jobs yet")
    assert stream.getvalue() == "no jobs yet\n"
    output, stream = printed(as_json=True)
    output.table([], ("id",), empty="no jobs yet")
    assert json.loads(stream.getvalue()) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.24, "0.2 s"), (59.94, "59.9 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (None, "")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12 B"), (1500, "1.5 kB"), (4.9e6, "4.9 MB"), (2e12, "2.0 TB")])
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


def test_a_running_job_in_one_line() -> None:
    assert view(job()).line() == "running, step 3/10, loss 1.2346, 322 tokens/s, 1 min 05 s left"


def test_a_queued_job_tells_its_place() -> None:
    queued = job(status="queued", martlet={"queue_position": 4, "progress": {}})
    assert view(queued).line() == "queued, place 4 in the queue"


def test_a_queued_job_tells_why_no_worker_has_it() -> None:
    reason = "waiting for a GPU: GPU 0 of gpu1 is held by training job x (0.65)"
    queued = job(status="queued", martlet={"queue_position": 1, "progress": {"queued_reason": reason}})
    assert view(queued).line() == f"queued, place 1 in the queue, {reason}"


def test_a_job_without_our_extension_is_shown_too() -> None:
    plain = {"id": "ftjob-1", "status": "failed", "error": {"message": "line 3: no assistant turn"}}
    assert view(plain).line() == "failed, line 3: no assistant turn"


def test_lines_are_printed_when_the_status_changes_and_not_for_each_step() -> None:
    output, stream = printed()
    lines = _Lines(output)
    steps = job()
    lines.update(view(steps))
    steps["martlet"]["progress"]["step"] = 4
    lines.update(view(job(martlet=steps["martlet"])))
    lines.update(view(job(status="succeeded", fine_tuned_model="ft:x")))
    shown = stream.getvalue().splitlines()
    assert len(shown) == 2
    assert "step 3/10" in shown[0]
    assert shown[1].startswith("ftjob-1: succeeded")


def test_followed_jobs_become_json_lines() -> None:
    output, stream = printed(as_json=True)
    lines = _Lines(output)
    lines.update(view(job()))
    lines.update(view(job(status="succeeded")))
    assert [json.loads(line)["status"] for line in stream.getvalue().splitlines()] == ["running", "succeeded"]


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("paused", 0), ("failed", 1), ("cancelled", 1)])
def test_exit_codes(status: str, code: int) -> None:
    output, _ = printed()
    assert conclude(output, view(job(status=status))) == code
