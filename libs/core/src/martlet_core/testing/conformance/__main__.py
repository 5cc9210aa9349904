"""Checks an implementation: ``python -m martlet_core.testing.conformance <contract> <address>``."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from martlet_core.testing.conformance.checks import Target
from martlet_core.testing.conformance.runner import CONTRACTS, run_conformance


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m martlet_core.testing.conformance", description=__doc__)
    contracts = parser.add_subparsers(dest="contract", required=True)
    base = {field.name for field in dataclasses.fields(Target)}
    for name, contract in CONTRACTS.items():
        command = contracts.add_parser(name)
        command.add_argument("address", help="host:port")
        command.add_argument(
            "--metadata", action="append", default=[], metavar="KEY=VALUE", help="sent with every call"
        )
        for field in dataclasses.fields(contract.target_class):
            if field.name in base:
                continue
            flag = "--" + field.name.replace("_", "-")
            if field.type == "bool":
                command.add_argument(flag, action="store_true")
            else:
                command.add_argument(flag, type=type(field.default), default=field.default)
    arguments = vars(parser.parse_args())
    pairs = [tuple(pair.partition("=")[::2]) for pair in arguments.pop("metadata")]
    report = run_conformance(arguments.pop("contract"), arguments.pop("address"), metadata=pairs, **arguments)
    print(report.table())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
