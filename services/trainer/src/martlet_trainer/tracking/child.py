"""A tracker's own process: ``python -m martlet_trainer.tracking.child KIND``. What a tool does here, hang or crash, concerns nobody else.

JSON lines in, one answer each out: {"open": TrackedRun} -> {"tool_run", "known"}; {"log": [Point]}, {"close": RunEnd},
{"leave": null} -> {}. {"error": text} instead, and the end of the process, when the tool raised something.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from martlet_trainer.tracking.run import Point, RunEnd, TrackedRun, Tracker

logger = logging.getLogger(__name__)

_LONGEST_ERROR = 2000


def main() -> int:
    """Serve the lines of stdin; returns the exit code."""
    kind = sys.argv[1]
    # Answers go where only we write: what a tool prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    tracker: Tracker | None = None
    for line in sys.stdin:
        [(verb, value)] = json.loads(line).items()
        try:
            if tracker is None:
                opened = import_module(f"martlet_trainer.tracking.tools.{kind}").open_run(TrackedRun(**value))
                tracker, answer = opened, {"tool_run": opened.tool_run, "known": opened.known}
            else:
                answer = _tell(tracker, verb, value)
        except Exception as error:
            logger.exception("the tool failed")
            answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]}) + "\n")
            return 1
        answers.write(json.dumps(answer) + "\n")
        if verb in ("close", "leave"):
            return 0
    return 0


def _tell(tracker: Tracker, verb: str, value: Any) -> Mapping[str, Any]:
    match verb:
        case "log":
            tracker.log([Point(**point) for point in value])
        case "close":
            tracker.close(RunEnd(**value))
        case "leave":
            tracker.leave()
        case _:
            raise ValueError(f"no such verb: {verb!r}")
    return {}


if __name__ == "__main__":
    sys.exit(main())
