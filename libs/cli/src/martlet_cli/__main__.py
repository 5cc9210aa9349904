"""The ``martlet`` command: reads the arguments, runs one command, turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import difflib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from martlet_core.errors import InvalidArgument, MartletError

from martlet_cli import stage_jobs
from martlet_cli.commands import (
    alias,
    artifacts,
    bench,
    chat,
    conformance,
    demo,
    doctor,
    environment,
    evaluate,
    files,
    jobs,
    keys,
    lineage,
    merge,
    models,
    platform,
    pooling,
    quantize,
    report,
    run,
    train,
)
from martlet_cli.context import Context, Parser
from martlet_cli.layout import Layout
from martlet_cli.output import Output
from martlet_cli.swift_table import NOT_NEEDED

_GROUPS = (
    platform,
    demo,
    doctor,
    keys,
    files,
    train,
    jobs,
    merge,
    quantize,
    evaluate,
    report,
    run,
    bench,
    models,
    alias,
    lineage,
    chat,
    pooling,
    artifacts,
    conformance,
    environment,
)
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = Parser(
        prog="martlet",
        description="Fine-tune language models and serve them: the platform on this machine, and its jobs.",
        epilog="MARTLET_BASE_URL and MARTLET_API_KEY name another gateway than the one `martlet up` started here.",
    )
    parser.add_argument(
        "--home", type=Path, help="directory of the platform's data, logs and secrets (default .martlet)"
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in _GROUPS:
        module.add(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    signal.signal(signal.SIGTERM, _leave)
    # Looked up before parsing, so that what is wrong with the arguments is said in the way that was asked for.
    given = list(sys.argv[1:] if argv is None else argv)
    output = Output(as_json="--json" in given)
    try:
        parser = build_parser()
        arguments, unknown = parser.parse_known_args(_spelled_out(given))
        used = getattr(arguments, "parser", parser)
        if not hasattr(arguments, "handler"):
            if unknown:
                used.error(f"there is no command {unknown[0]!r}")
            used.print_help()
            return EXIT_USAGE
        _refuse_unknown(used, unknown)
        return arguments.handler(Context(Layout.discover(arguments.home), output), arguments)
    except (MartletError, FileNotFoundError) as error:
        _report(output, error)
        return EXIT_USAGE if isinstance(error, InvalidArgument) else EXIT_FAILED
    except KeyboardInterrupt:
        output.say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `martlet … | head`
        sys.stderr.close()
        return EXIT_FAILED


#: Groups whose ``create`` may be left out: ``merge MODEL`` is ``merge create MODEL``.
_CREATING = ("merge", "quantize", "evaluate")


def _spelled_out(argv: list[str]) -> list[str]:
    """``merge MODEL`` as ``merge create MODEL``."""
    place = 2 if argv[:1] == ["--home"] else 1 if argv and argv[0].startswith("--home=") else 0
    if len(argv) < place + 2 or argv[place] not in _CREATING:
        return argv
    if argv[place + 1] in (*stage_jobs.COMMANDS, "report", "-h", "--help"):
        return argv
    return [*argv[: place + 1], "create", *argv[place + 1 :]]


def _leave(number: int, _frame: FrameType | None) -> None:
    """Let what was begun be ended: the demo stops the platform that it started."""
    raise SystemExit(128 + number)


def _report(output: Output, error: Exception) -> None:
    if output.as_json:
        described = error.to_dict() if isinstance(error, MartletError) else {"code": "NOT_FOUND", "message": str(error)}
        output.json({"error": described})
        return
    output.error(str(error))
    if isinstance(error, MartletError) and error.metadata.get("request_id"):
        output.say(f"[dim]request id {error.metadata['request_id']}[/]")


def _refuse_unknown(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> None:
    """Raise InvalidArgument for arguments that the command doesn't know, with what they may have meant."""
    if not unknown:
        return
    flag = unknown[0].partition("=")[0]
    if flag in NOT_NEEDED:
        raise InvalidArgument.field(flag, f"isn't taken: {NOT_NEEDED[flag]}")
    known = [option for action in parser._actions for option in action.option_strings]
    close = difflib.get_close_matches(flag, known, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(close)}?" if close else f"; `{parser.prog} --help` lists what is"
    raise InvalidArgument(f"{flag} isn't known to `{parser.prog}`{hint}")


if __name__ == "__main__":
    sys.exit(main())
