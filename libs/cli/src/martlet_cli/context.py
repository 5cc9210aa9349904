"""What a command is given, and how its parser is made."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from martlet_core.errors import InvalidArgument
from rich_argparse import RawDescriptionRichHelpFormatter

from martlet_cli.gateway import Connection, Gateway
from martlet_cli.layout import Layout
from martlet_cli.output import Output

Handler = Callable[["Context", argparse.Namespace], int]
#: What ``add_subparsers`` returns; argparse keeps the class to itself.
Subparsers = Any


@dataclass
class Context:
    """Built once in ``main`` and passed to the command."""

    layout: Layout
    output: Output

    @cached_property
    def gateway(self) -> Gateway:
        """The gateway; FailedPrecondition if none is known."""
        return Gateway(Connection.discover(self.layout))


class Parser(argparse.ArgumentParser):
    """A parser that shortens nothing (``--lora`` must not silently mean ``--lora_rank``), and raises what is wrong: ``main``
    says it, as JSON if that is wanted.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", RawDescriptionRichHelpFormatter)
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise InvalidArgument."""
        raise InvalidArgument(f"{message.removeprefix('argument ')}; `{self.prog} --help` says what is taken")


def command(
    subparsers: Subparsers, name: str, handler: Handler, help: str, epilog: str = ""
) -> argparse.ArgumentParser:
    """Add a command; every command takes ``--json``."""
    parser = subparsers.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", epilog=epilog or None)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(handler=handler, parser=parser)
    return parser


def group(
    subparsers: Subparsers, name: str, help: str, parser_class: type[argparse.ArgumentParser] = Parser
) -> Subparsers:
    """Add a group of commands; without a command it prints its help."""
    parser = subparsers.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    parser.set_defaults(parser=parser)
    return parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=parser_class)
