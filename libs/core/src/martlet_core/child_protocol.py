"""What a worker supervisor and the process that runs a recipe tell one another.

Three channels, all inherited file descriptors, none of them stdout (libraries print there):

- *report pipe*, child -> supervisor: JSON lines, one message each (the ``type`` field is one of the constants below).
- *lifeline pipe*, supervisor -> child: one byte for each renewed lease. End of file (the supervisor died) or silence
  for longer than the lease (it is stopped, or cut off from the job store) make the child kill its whole process group.
- SIGTERM: write a checkpoint and stop.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from martlet_core.gpus import MEMORY_SHARE

#: Environment variables that hand the pipes and the lease over.
REPORT_FD = "MARTLET_CHILD_REPORT_FD"
LIFELINE_FD = "MARTLET_CHILD_LIFELINE_FD"
SILENCE_SECONDS = "MARTLET_CHILD_SILENCE_SECONDS"

#: Message types of a running recipe.
PHASE = "phase"
LOG = "log"
METRICS = "metrics"
CHECKPOINT = "checkpoint"
PARTIAL_RESULT = "partial_result"
TEMPORARY_MODEL = "temporary_model"

#: Message types that end it; exactly one is the last line, unless the process was killed.
RESULT = "result"
STOPPED = "stopped"
ERROR = "error"
CRASH = "crash"
FINAL_TYPES = frozenset({RESULT, STOPPED, ERROR, CRASH})

EXIT_OK = 0
EXIT_CRASH = 1
EXIT_ERROR = 2
EXIT_STOPPED = 3

#: Deployment secrets that a recipe has no business with: it runs user data and models. And what only a lease may say.
_WITHHELD_PREFIXES = (
    *("MARTLET_S3_", "MARTLET_REDIS_URL", "MARTLET_INTERNAL_TOKEN", MEMORY_SHARE),
    *("WANDB_", "MLFLOW_"),
)


def answer_file(workdir: Path, number: int) -> Path:
    """Where the supervisor answers ``TEMPORARY_MODEL``: ``{"model": name}`` or ``{"error": MartletError.to_dict()}``, written whole."""
    return workdir / "temporary" / f"{number}.json"


def child_environment(
    base: Mapping[str, str], *, report_fd: int, lifeline_fd: int, silence_seconds: float
) -> dict[str, str]:
    """The child's environment: the supervisor's, without its credentials, with the pipes' numbers."""
    env = {name: value for name, value in base.items() if not name.startswith(_WITHHELD_PREFIXES)}
    env["PYTHONUNBUFFERED"] = "1"
    env[REPORT_FD] = str(report_fd)
    env[LIFELINE_FD] = str(lifeline_fd)
    env[SILENCE_SECONDS] = str(silence_seconds)
    return env


def take_pipes() -> tuple[int, int, float]:
    """Read (report fd, lifeline fd, silence in seconds) in the child and hide them from its own children."""
    report_fd, lifeline_fd = int(os.environ.pop(REPORT_FD)), int(os.environ.pop(LIFELINE_FD))
    silence_seconds = float(os.environ.pop(SILENCE_SECONDS))
    os.set_inheritable(report_fd, False)
    os.set_inheritable(lifeline_fd, False)
    return report_fd, lifeline_fd, silence_seconds
