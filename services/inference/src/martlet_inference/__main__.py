"""``python -m martlet_inference serve``: builds the replica and runs it until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

import uvloop
from martlet_core.errors import MartletError
from martlet_core.logs import configure
from martlet_core.rpc import grpc_environment  # noqa: F401  # before anything that imports grpc
from martlet_core.settings import PREFIX
from pydantic import ValidationError

from martlet_inference.replica import Replica
from martlet_inference.settings import InferenceSettings


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="martlet_inference", description="Martlet's inference service; settings are MARTLET_* variables."
    )
    parser.add_argument("command", choices=["serve"], help="serve: answer martlet.inference.v1")
    parser.parse_args()
    try:
        settings = InferenceSettings()  # pyright: ignore[reportCallIssue]  # every field has a default or a variable
    except ValidationError as exc:
        for error in exc.errors():
            name = f"{PREFIX}{'.'.join(map(str, error['loc'])).upper()}"
            print(f"martlet_inference: {name}: {error['msg']}", file=sys.stderr)
        return 2
    except MartletError as exc:
        print(f"martlet_inference: {exc.message}", file=sys.stderr)
        return 1
    configure("inference", settings.log_level, settings.log_format)
    try:
        uvloop.run(serve(settings))  # halves the time that a gRPC call takes here
    except MartletError as exc:
        print(f"martlet_inference: {exc.message}", file=sys.stderr)
        return 1
    return 0


async def serve(settings: InferenceSettings) -> None:
    """Run a replica until SIGTERM or SIGINT, then drain it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    replica = await Replica.build(settings)
    await replica.start()
    await replica.run_until(stop)
    await replica.stop()


if __name__ == "__main__":
    sys.exit(main())
