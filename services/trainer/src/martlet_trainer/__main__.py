"""``python -m martlet_trainer serve | work``: the trainer's two processes; settings are MARTLET_* variables."""

from __future__ import annotations

import argparse
import sys

from martlet_core.errors import MartletError
from martlet_core.logs import configure

from martlet_trainer.settings import TrainerSettings


def main() -> int:
    """Parse the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="martlet_trainer", description=__doc__)
    parser.add_argument("command", choices=["serve", "work"], help="serve: answer gRPC; work: carry out jobs")
    command = parser.parse_args().command
    try:
        settings = TrainerSettings()  # pyright: ignore[reportCallIssue]  # every field has a default or a variable
        configure("trainer" if command == "serve" else "trainer-worker", settings.log_level, settings.log_format)
        return _serve(settings) if command == "serve" else _work(settings)
    except MartletError as error:
        print(f"martlet_trainer: {error.message}", file=sys.stderr)
        return 1


def _serve(settings: TrainerSettings) -> int:
    from martlet_trainer.service import serve  # gRPC: the worker does without it

    return serve(settings)


def _work(settings: TrainerSettings) -> int:
    from martlet_trainer.worker import work  # Celery: the service does without its worker

    return work(settings)


if __name__ == "__main__":
    sys.exit(main())
