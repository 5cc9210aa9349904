"""Turns what a recipe says into a job's events, progress and checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from martlet_core import child_protocol as protocol
from martlet_core.checkpoints import CheckpointKeeper
from martlet_core.outbox import Outbox

logger = logging.getLogger(__name__)

_LEVELS = frozenset({"info", "warn", "error"})


class MessageRelay:
    """Takes a recipe's messages in; called from the reader threads.

    Args:
        workdir: the job's directory; paths outside of it are refused.
        outbox: where events and progress go.
        checkpoints: where checkpoints go.
        publish: takes directories that are published for a while, with their numbers.
    """

    def __init__(
        self, workdir: Path, outbox: Outbox, checkpoints: CheckpointKeeper, publish: Callable[[Path, int], None]
    ) -> None:
        self._workdir = workdir.resolve()
        self._outbox = outbox
        self._checkpoints = checkpoints
        self._publish = publish

    def on_log_line(self, source: str, line: str) -> None:
        """Record a line that the process printed."""
        self._outbox.event("log", line, data={"source": source})

    def on_message(self, message: Mapping[str, Any]) -> None:
        """Record a message of ``child_protocol``."""
        match message["type"]:
            case protocol.PHASE:
                self._outbox.progress(phase=message["name"])
            case protocol.LOG:
                level = message["level"] if message["level"] in _LEVELS else "info"
                self._outbox.event("log", message["message"], level=level, data={"source": "recipe"})
            case protocol.METRICS:
                self._on_metrics(message)
            case protocol.CHECKPOINT:
                self._on_checkpoint(message)
            case protocol.PARTIAL_RESULT:
                self._outbox.partial_result(message["values"])
            case protocol.TEMPORARY_MODEL:
                if (path := self._directory(message["path"], "temporary model")) is not None:
                    self._publish(path, message["number"])
            case other:
                logger.warning("A recipe sent a message of unknown type %r.", other)

    def _on_metrics(self, message: Mapping[str, Any]) -> None:
        step, total, values = message["step"], message["total_steps"], message["values"]
        shown = ", ".join(f"{name} {value:.5g}" for name, value in values.items())
        self._outbox.event("metrics", f"Step {step}/{total}: {shown}", data={"step": step, "values": values})
        self._outbox.progress(
            step=step, total_steps=total, eta_seconds=message["eta_seconds"], metrics=self._merged(values)
        )

    def _merged(self, values: Mapping[str, float]) -> dict[str, float]:
        return {**self._outbox.current_progress().get("metrics", {}), **values}

    def _on_checkpoint(self, message: Mapping[str, Any]) -> None:
        if (path := self._directory(message["path"], "checkpoint")) is not None:
            self._checkpoints.submit(path, message["step"], message["metrics"], message["is_best"])

    def _directory(self, named: str, what: str) -> Path | None:
        """A directory that the recipe named; None, and a line in the log, where it is none of the job's."""
        path = (self._workdir / named).resolve()
        if path.is_relative_to(self._workdir) and path.is_dir():
            return path
        self._outbox.log(f"The {what} {named!r} is not a directory of this job.", level="error")
        return None
