"""``conformance trainer|quantizer|evaluator|inference``: does what answers at an address keep its contract?"""

from __future__ import annotations

import argparse
from typing import Any

import grpc
from martlet_core.errors import InvalidArgument, Unavailable
from martlet_core.rpc.context import INTERNAL_TOKEN_KEY, TENANT_KEY

from martlet_cli.context import Context, Parser, Subparsers, command, group

_CONNECT_SECONDS = 10.0
_CONTRACTS = ("evaluator", "inference", "quantizer", "trainer")
_EPILOG = (
    "Exit code 0: every rule that is about the service was tried, and kept. docs/conformance.md lists the rules and "
    "says what each option is for."
)


class _ContractParser(Parser):
    """The parser of one contract. It asks the kit for the contract's own options when it is used: the kit loads all stubs,
    which would double the time that any other command takes to start.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add the options, then parse."""
        from martlet_core.testing.conformance import CONTRACTS

        for option in CONTRACTS[self.get_default("contract")].options():
            flag, help = "--" + option.name.replace("_", "-"), option.metadata["help"]
            if isinstance(option.default, bool):
                self.add_argument(flag, action="store_true", help=help)
                continue
            shown = f"{help} (default {option.default})" if option.default else help
            self.add_argument(flag, type=type(option.default), default=option.default, help=shown)
        return super().parse_known_args(args, namespace)


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    help = "does a service, whoever wrote it, keep the contract of its stage?"
    commands = group(subparsers, "conformance", help, parser_class=_ContractParser)
    for name in _CONTRACTS:
        help = f"try every rule of the contract on the {name} at an address"
        parser = command(commands, name, _conformance, help, epilog=_EPILOG)
        parser.set_defaults(contract=name)
        parser.add_argument("--address", metavar="HOST:PORT", help="where its gRPC port is")
        parser.add_argument("--list", action="store_true", help="list the rules, and try none")
        parser.add_argument("--tenant", default="", help=f"the tenant to be, sent as {TENANT_KEY}")
        parser.add_argument("--internal-token", default="", metavar="TOKEN", help=f"sent as {INTERNAL_TOKEN_KEY}")
        parser.add_argument("--metadata", action="append", default=[], metavar="KEY=VALUE", help="sent with every call")
        parser.add_argument("--timeout-seconds", type=float, default=30.0, metavar="N", help="of a call (default 30)")
        parser.add_argument("--partial", action="store_true", help="rules that couldn't be tried are no failure")


def _conformance(context: Context, arguments: argparse.Namespace) -> int:
    from martlet_core.testing.conformance import CONTRACTS, run_conformance

    contract = CONTRACTS[arguments.contract]
    if arguments.list:
        context.output.table([{"rule": r.name, "expected": r.sentence} for r in contract.rules], ("rule", "expected"))
        return 0
    if not arguments.address:
        raise InvalidArgument.field("--address", "is missing: HOST:PORT of the service's gRPC port")
    _connect(arguments.address)
    options: dict[str, Any] = {option.name: getattr(arguments, option.name) for option in contract.options()}
    report = run_conformance(
        arguments.contract,
        arguments.address,
        metadata=_metadata(arguments),
        timeout_seconds=arguments.timeout_seconds,
        **options,
    )
    kept = report.passed and (report.complete or arguments.partial)
    rows = [result.to_dict() for result in report.results]
    if context.output.as_json:
        found = {"contract": report.contract, "address": report.address, "conforms": kept, "rules": rows}
        context.output.json(found)
    else:
        context.output.table(rows, ("rule", "result", "expected", "found"))
    context.output.say(report.summary())
    return 0 if kept else 1


def _metadata(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    pairs = [(TENANT_KEY, arguments.tenant), (INTERNAL_TOKEN_KEY, arguments.internal_token)]
    for text in arguments.metadata:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidArgument.field("--metadata", f"is KEY=VALUE, not {text!r}")
        pairs.append((key.lower(), value))
    return [(key, value) for key, value in pairs if value]


def _connect(address: str) -> None:
    """Unavailable if nothing takes calls there: every rule would say so."""
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            raise Unavailable(
                f"nothing speaks gRPC without TLS at {address}: is the service up, and is that its port?"
            ) from None
