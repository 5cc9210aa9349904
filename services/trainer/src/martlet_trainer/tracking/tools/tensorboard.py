"""TensorBoard: event files under ``DIRECTORY/TENANT/PROJECT/RUN``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from martlet_trainer.tracking.run import Point, RunEnd, TrackedRun

# Made when the module is imported: no type checker sees them.
Event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
SessionLog: Any = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]


def open_run(run: TrackedRun) -> TensorboardRun:
    """See ``TensorboardRun``."""
    return TensorboardRun(run)


class TensorboardRun:
    """See ``Tracker``. Each process writes a file of its own, which begins with the mark of a session. From the second on, it has
    TensorBoard hide what earlier files say of later steps: points that were written and not noted.

    tensorboardX's ``SummaryWriter`` writes from a thread, and its flush doesn't wait for that; so its file writer is used alone.
    """

    def __init__(self, run: TrackedRun) -> None:
        name = run.job_id if run.name == run.job_id else f"{run.name}-{run.job_id}"
        directory = Path(run.directory) / run.tenant / run.project / name
        directory.mkdir(parents=True, exist_ok=True)
        self.tool_run = str(directory.relative_to(run.directory))
        self.known: int | None = None
        self._last_step = run.said_until
        self._writer = EventsWriter(str(directory / "events"), f".{time.time_ns()}")
        mark = SessionLog(status=SessionLog.START)
        step = run.said_until + 1 if run.tool_run else 0
        self._writer.write_event(Event(wall_time=time.time(), step=step, session_log=mark))
        if not run.tool_run:
            self._text("config", {**run.config, "tags": list(run.tags)})
        self._writer.flush()

    def log(self, points: Sequence[Point]) -> None:
        """See ``Tracker``."""
        for point in points:
            for name, value in point.values.items():
                number = summary.scalar(name, value)
                self._writer.write_event(Event(wall_time=point.time, step=point.step, summary=number))
            self._last_step = max(self._last_step, point.step)
        self._writer.flush()

    def close(self, end: RunEnd) -> None:
        """See ``Tracker``."""
        self._text("resolved_config", end.config)
        self._text("result", {"state": end.state, **end.summary})
        self._writer.close()

    def leave(self) -> None:
        """See ``Tracker``."""
        self._writer.close()

    def _text(self, tag: str, values: Mapping[str, Any]) -> None:
        lines = json.dumps(values, indent=2).splitlines()
        # Indented by four: a block of code in Markdown, which is what TensorBoard shows texts as.
        text = summary.text(tag, "\n".join("    " + line for line in lines))
        self._writer.write_event(Event(wall_time=time.time(), step=self._last_step, summary=text))
