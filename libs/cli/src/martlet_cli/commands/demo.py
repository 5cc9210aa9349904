"""``demo``: the main job on real data, from nothing."""

from __future__ import annotations

import argparse

from martlet_cli.commands.platform import add_up_arguments, up_arguments
from martlet_cli.context import Context, Subparsers, command


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = command(
        subparsers, "demo", _demo, "fine-tune a real model on real data, show that it got better, chat with it"
    )
    parser.add_argument("--keep", action="store_true", help="leave the platform up afterwards")
    add_up_arguments(parser)


def _demo(context: Context, arguments: argparse.Namespace) -> int:
    from martlet_cli import demo  # heavy: the other commands start without it

    demo.run(context.layout, context.output, up_arguments(arguments), keep=arguments.keep)
    return 0
