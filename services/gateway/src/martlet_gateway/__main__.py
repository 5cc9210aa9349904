"""``python -m martlet_gateway serve | work | init | key``: REST and gRPC, or the runs, until SIGTERM or SIGINT; or set-up."""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
import signal
import sys

import uvloop
from martlet_core import logs
from martlet_core.api_keys import OPERATOR, USER, ApiKeyStore
from martlet_core.errors import MartletError
from martlet_core.rpc import grpc_environment  # noqa: F401  # before anything that imports grpc
from martlet_core.rpc.context import DEFAULT_TENANT
from martlet_core.settings import PREFIX
from martlet_core.stores import Stores, open_stores
from pydantic import ValidationError

from martlet_gateway.runs.worker import work
from martlet_gateway.server import GatewayServer, open_shared_memory
from martlet_gateway.settings import GatewaySettings

log = logging.getLogger("martlet_gateway")

_FILES = 65_536


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="martlet_gateway", description="Martlet's gateway; settings are MARTLET_* variables."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="answer REST and gRPC until SIGTERM")
    commands.add_parser("work", help="carry out runs until SIGTERM")
    commands.add_parser(
        "init", help="make the bucket and the first API key (MARTLET_FIRST_API_KEY), once both stores answer"
    )
    key = commands.add_parser("key", help="make an API key and print its secret, which is shown this once")
    key.add_argument("tenant", help="whose requests it makes")
    key.add_argument("--name", default="", help="label for people")
    key.add_argument("--operator", action="store_true", help="it may also load, unload and pin models, for all tenants")
    arguments = parser.parse_args()
    command = arguments.command
    try:
        settings = GatewaySettings()  # type: ignore[call-arg]  # its values come from the environment
    except ValidationError as error:
        for fault in error.errors():
            name = f"{PREFIX}{'.'.join(map(str, fault['loc'])).upper()}"
            print(f"martlet_gateway: {name}: {fault['msg']}", file=sys.stderr)
        return 2
    except MartletError as error:
        print(f"martlet_gateway: {error.message}", file=sys.stderr)
        return 1
    try:
        name = {"serve": "gateway", "work": "gateway-worker"}.get(command, f"gateway-{command}")
        logs.configure(name, settings.log_level, settings.log_format)
        if command == "work":
            return work(settings)
        if command == "init":
            return _init(settings)
        if command == "key":
            scope = OPERATOR if arguments.operator else USER
            print(open_stores(settings).api_keys.create(arguments.tenant, arguments.name, scope=scope)[0])
            return 0
        _raise_file_limit()
        uvloop.run(_serve(settings))
    except MartletError as error:
        print(f"martlet_gateway: {error.message}", file=sys.stderr)
        return 1
    return 0


async def _serve(settings: GatewaySettings) -> None:
    stores = await asyncio.to_thread(open_stores, settings)
    await asyncio.to_thread(make_first_key, stores)
    shared, client = open_shared_memory(settings)
    server = GatewayServer(settings, stores, shared)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        await server.start()
        await stopping.wait()
        log.info("stopping")
    finally:
        await server.stop()
        await client.aclose()


def _init(settings: GatewaySettings) -> int:
    """Make the bucket, try that the stores can be relied on, and register the first API key; the same again is fine."""
    stores = open_stores(settings)
    if settings.first_api_key:
        stores.api_keys.register(settings.first_api_key, DEFAULT_TENANT, "made at set-up", scope=OPERATOR)
        log.info("the first API key is registered", extra={"tenant": DEFAULT_TENANT})
    log.info("the stores are ready", extra={"bucket": settings.s3_bucket})
    return 0


def make_first_key(stores: Stores) -> str | None:
    """If there is no API key yet, make one and print it, this once; returns it."""
    keys = ApiKeyStore(stores.objects)
    if keys.list():
        return None
    secret, key = keys.create(DEFAULT_TENANT, "made at first start", scope=OPERATOR)
    print(
        f"Made the first API key, an operator's, for tenant {key.tenant}. It is shown this once:\n\n    {secret}\n",
        flush=True,
    )
    return secret


def _raise_file_limit() -> None:
    """A stream is a file descriptor, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
