"""``python -m martlet_trainer serve | work | track``: the trainer's processes; settings are MARTLET_* variables."""

from __future__ import annotations

import argparse
import sys

from martlet_core.errors import MartletError
from martlet_core.logs import configure

from martlet_trainer.settings import TrainerSettings

#: Commands, and what each process is called in its log.
_NAMES = {"serve": "trainer", "work": "trainer-worker", "track": "trainer-tracker"}


def main() -> int:
    """Parse the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="martlet_trainer", description=__doc__)
    parser.add_argument(
        "command", choices=[*_NAMES], help="serve: answer gRPC; work: carry out jobs; track: tell trackers of them"
    )
    command = parser.parse_args().command
    try:
        settings = TrainerSettings()  # pyright: ignore[reportCallIssue]  # every field has a default or a variable
        configure(_NAMES[command], settings.log_level, settings.log_format)
        return {"serve": _serve, "work": _work, "track": _track}[command](settings)
    except MartletError as error:
        print(f"martlet_trainer: {error.message}", file=sys.stderr)
        return 1


def _serve(settings: TrainerSettings) -> int:
    from martlet_trainer.service import serve  # gRPC: the worker does without it

    return serve(settings)


def _work(settings: TrainerSettings) -> int:
    from martlet_trainer.worker import work  # Celery: the service does without its worker

    return work(settings)


def _track(settings: TrainerSettings) -> int:
    from martlet_trainer.tracking.daemon import track  # in an environment of its own, without torch

    return track(settings)


if __name__ == "__main__":
    sys.exit(main())
