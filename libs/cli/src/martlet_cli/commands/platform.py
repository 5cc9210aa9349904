"""``up``, ``down``, ``status``, ``logs``: the platform on this machine."""

from __future__ import annotations

import argparse
import os
import time
from datetime import datetime

from martlet_core.errors import InvalidArgument
from rich.markup import escape

from martlet_cli import platform_state
from martlet_cli.context import Context, Subparsers, command
from martlet_cli.output import duration, size
from martlet_cli.platform_options import (
    DEFAULT_FAMILIES,
    DEFAULT_MODEL,
    DEFAULT_STAGES,
    ENGINES,
    FAMILIES,
    PORTS,
    STAGES,
    TRACKERS,
    PlatformOptions,
)


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    up = command(subparsers, "up", _up, "start the whole platform on this machine and keep it running")
    add_up_arguments(up)
    up.add_argument("--detach", action="store_true", help="run in the background; `martlet down` stops it")
    up.add_argument(
        "--wait",
        choices=("core", "all"),
        default="core",
        help="with --detach: return when all but inference is ready, or all",
    )
    command(subparsers, "down", _down, "stop the platform; data, keys and models stay")
    command(subparsers, "status", _status, "show what runs: processes, health, ports, memory")
    logs = command(subparsers, "logs", _logs, "show a process's log")
    logs.add_argument(
        "process",
        nargs="?",
        default="launcher",
        help="a process of `martlet status`, or launcher",
    )
    logs.add_argument("-n", "--lines", type=int, default=50, help="how many of the last lines (default 50)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on printing until Ctrl-C")


def add_up_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what to start, and where."""
    parser.add_argument(
        "--engine",
        choices=tuple(ENGINES),
        default="vllm",
        help="inference engine (transformers: where vLLM doesn't run; echo: repeats the prompt; for tests)",
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"base model to serve, by name or as org/model@commit of the hub (default {DEFAULT_MODEL})",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address the gateway listens on (default 127.0.0.1)")
    for name, usual in PORTS.items():
        default = f"{usual} if free" if usual else "any free one"
        parser.add_argument(
            f"--{name}-port", type=int, metavar="PORT", help=f"port of {name} (default {default}; 0: any free one)"
        )
    parser.add_argument(
        "--stages",
        default=",".join(DEFAULT_STAGES),
        metavar="NAME,…",
        help=f"job stages to start, of {', '.join(STAGES)} (default {','.join(DEFAULT_STAGES)})",
    )
    parser.add_argument(
        "--quantizer-families",
        default=",".join(DEFAULT_FAMILIES),
        metavar="NAME,…",
        help=f"families of quantization methods that get a worker, of {', '.join(FAMILIES)} "
        f"(default {','.join(DEFAULT_FAMILIES)})",
    )
    parser.add_argument(
        "--trackers",
        default="",
        metavar="NAME,…",
        help=f"tools that jobs may have told of them (--report_to), of {', '.join(TRACKERS)} (default: none)",
    )
    parser.add_argument(
        "--environment",
        action="append",
        default=[],
        metavar="SERVICE=NAME",
        help="run a service in another environment than its own (for development)",
    )


def up_options(arguments: argparse.Namespace) -> PlatformOptions:
    """What the arguments of ``up`` ask for."""
    environments = {}
    for pair in arguments.environment:
        service, equals, name = pair.partition("=")
        if not (service and equals and name):
            raise InvalidArgument.field("--environment", f"{pair!r} must look like inference=dev")
        environments[service] = name
    options = PlatformOptions(
        engine=arguments.engine,
        model=arguments.model,
        environments=environments,
        host=arguments.host,
        redis_url=os.environ.get("MARTLET_REDIS_URL", ""),
        s3_endpoint=os.environ.get("MARTLET_S3_ENDPOINT", ""),
        ports={name: value for name in PORTS if (value := getattr(arguments, f"{name}_port")) is not None},
        stages=_names(arguments.stages),
        families=_names(arguments.quantizer_families),
        trackers=_names(arguments.trackers),
    )
    options.check()
    return options


def up_arguments(arguments: argparse.Namespace) -> list[str]:
    """The arguments of ``up`` again as text, for a launcher in the background."""
    texts = ["--engine", arguments.engine, "--model", arguments.model, "--host", arguments.host]
    texts += ["--stages", arguments.stages, "--quantizer-families", arguments.quantizer_families]
    texts += ["--trackers", arguments.trackers]
    for name in PORTS:
        value = getattr(arguments, f"{name}_port")
        texts += [] if value is None else [f"--{name}-port", str(value)]
    for pair in arguments.environment:
        texts += ["--environment", pair]
    return texts


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _up(context: Context, arguments: argparse.Namespace) -> int:
    from martlet_cli import launcher  # heavy: the other commands start without it

    options = up_options(arguments)
    say = _timed_say(context)
    if not arguments.detach:
        return launcher.run(context.layout, options, say)
    launcher.start_detached(
        context.layout, up_arguments(arguments), lambda line: context.output.say(escape(line)), wait_for=arguments.wait
    )
    return _status(context, arguments)


def _timed_say(context: Context) -> platform_state.Say:
    def say(line: str) -> None:
        context.output.say(f"[dim]{datetime.now():%H:%M:%S}[/] {escape(line)}")

    return say


def _down(context: Context, arguments: argparse.Namespace) -> int:
    stopped = platform_state.stop(context.layout, lambda line: context.output.say(escape(line)))
    context.output.result({"stopped": stopped}, "stopped" if stopped else "nothing was running")
    return 0


def _status(context: Context, arguments: argparse.Namespace) -> int:
    value = platform_state.status(context.layout)
    output = context.output
    if output.as_json:
        output.json(value)
    else:
        rows = [
            process
            | {
                "uptime": duration(process["uptime_seconds"]),
                "memory": size(process["resident_bytes"]) if process["resident_bytes"] else "",
            }
            for process in value["processes"]
        ]
        title = f"martlet is {value['phase']} in {value['home']}"
        columns = ("name", "state", "pid", "port", "restarts", "uptime", "memory")
        output.table(rows, columns, title=title, empty=f"{title}; `martlet up` starts it")
        if value["phase"] == "up":
            output.say(
                f"REST  http://127.0.0.1:{value['ports']['http']}/v1    gRPC  127.0.0.1:{value['ports']['grpc']}"
            )
    return 0 if value["phase"] == "up" else 1


def _logs(context: Context, arguments: argparse.Namespace) -> int:
    lines = platform_state.tail(context.layout, arguments.process, arguments.lines)
    context.output.result(lines, escape("\n".join(lines)))
    if arguments.follow:
        with open(context.layout.logs / f"{arguments.process}.log") as stream:
            stream.seek(0, os.SEEK_END)
            while True:
                line = stream.readline()
                if line:
                    context.output.console.print(line.rstrip("\n"), markup=False)
                else:
                    time.sleep(0.2)
    return 0
