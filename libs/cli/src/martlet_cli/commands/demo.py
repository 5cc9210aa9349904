"""``demo``: the main job on real data, from nothing; ``demo-lifecycle``: the whole way to a served name."""

from __future__ import annotations

import argparse

from martlet_cli.commands.platform import add_up_arguments, up_arguments, up_options
from martlet_cli.context import Context, Handler, Subparsers, command


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    _add(subparsers, "demo", _demo, "fine-tune a real model on real data, show that it got better, chat with it")
    lifecycle = _add(
        subparsers,
        "demo-lifecycle",
        _lifecycle,
        "train, merge, quantize, measure every variant on the same rows, and serve the one that is good enough",
    )
    lifecycle.set_defaults(stages="trainer,quantizer,evaluator", quantizer_families="bnb,llmcompressor")


def _add(subparsers: Subparsers, name: str, handler: Handler, help: str) -> argparse.ArgumentParser:
    parser = command(subparsers, name, handler, help)
    parser.add_argument("--keep", action="store_true", help="leave the platform up afterwards")
    add_up_arguments(parser)
    parser.set_defaults(stages="trainer")
    return parser


def _demo(context: Context, arguments: argparse.Namespace) -> int:
    from martlet_cli import demo  # heavy: the other commands start without it

    demo.run(context.layout, context.output, up_arguments(arguments), keep=arguments.keep)
    return 0


def _lifecycle(context: Context, arguments: argparse.Namespace) -> int:
    from martlet_cli import lifecycle  # heavy: the other commands start without it

    options = up_options(arguments)
    lifecycle.run(context.layout, context.output, options, up_arguments(arguments), keep=arguments.keep)
    return 0
