"""``python -m martlet_quantizer serve | work --family NAME``: the quantizer's processes; settings are MARTLET_* variables."""

from __future__ import annotations

import argparse
import sys

from martlet_core.errors import MartletError
from martlet_core.logs import configure

from martlet_quantizer.methods import FAMILIES
from martlet_quantizer.settings import QuantizerSettings


def main() -> int:
    """Parse the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="martlet_quantizer", description=__doc__)
    parser.add_argument("command", choices=["serve", "work"], help="serve: answer gRPC; work: carry out jobs")
    parser.add_argument(
        "--family", choices=FAMILIES, help="work: the family of methods (default: MARTLET_QUANTIZER_FAMILY)"
    )
    arguments = parser.parse_args()
    try:
        settings = QuantizerSettings()  # pyright: ignore[reportCallIssue]  # every field has a default or a variable
        name = "quantizer" if arguments.command == "serve" else "quantizer-worker"
        configure(name, settings.log_level, settings.log_format)
        if arguments.command == "serve":
            return _serve(settings)
        return _work(settings, arguments.family or settings.quantizer_family)
    except MartletError as error:
        print(f"martlet_quantizer: {error.message}", file=sys.stderr)
        return 1


def _serve(settings: QuantizerSettings) -> int:
    from martlet_quantizer.service import serve  # gRPC: the worker does without it

    return serve(settings)


def _work(settings: QuantizerSettings, family: str) -> int:
    from martlet_quantizer.worker import work  # Celery: the service does without its worker

    return work(settings, family)


if __name__ == "__main__":
    sys.exit(main())
