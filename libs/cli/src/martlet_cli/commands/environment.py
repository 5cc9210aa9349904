"""``env sync|list``: the virtual environments."""

from __future__ import annotations

import argparse

from rich.markup import escape

from martlet_cli import environments
from martlet_cli.context import Context, Subparsers, command, group
from martlet_cli.platform_options import PlatformOptions


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    commands = group(subparsers, "env", "make and list the services' environments")
    sync = command(
        commands, "sync", _sync, "make environments from their locks; those that are current stay as they are"
    )
    sync.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"any of {', '.join(environments.ENVIRONMENTS)} (default: what `up` needs)",
    )
    sync.add_argument("--force", action="store_true", help="remake them even if they are current")
    command(commands, "list", _list, "list the environments and whether they match their locks")


def _sync(context: Context, arguments: argparse.Namespace) -> int:
    seconds = {}
    for name in arguments.names or PlatformOptions().services:
        taken = environments.sync(
            context.layout, name, say=lambda line: context.output.say(escape(line)), force=arguments.force
        )
        seconds[name] = round(taken, 1)
    context.output.result(seconds, "ready: " + ", ".join(seconds))
    return 0


def _list(context: Context, arguments: argparse.Namespace) -> int:
    context.output.table(environments.describe(context.layout), ("name", "state", "accelerator", "purpose"))
    return 0
