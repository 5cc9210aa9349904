"""``python -m martlet_inputs.base_models``: list the catalogue, or prepare a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from martlet_core.errors import MartletError

from martlet_inputs.base_models.catalog import catalog, find


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m martlet_inputs.base_models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the base models known by name")
    prepare_parser = commands.add_parser("prepare", help="fetch and convert a model; does nothing when it is there")
    prepare_parser.add_argument("name")
    prepare_parser.add_argument("--out", type=Path, required=True, help="directory to make")
    several = commands.add_parser(
        "prepare-all", help="the same for any number of models, each in a directory of its name"
    )
    several.add_argument("directory", type=Path, help="directory of the directories")
    several.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    try:
        if arguments.command == "list":
            for model in catalog().values():
                print(f"{model.name}\t{model.parameter_count:,} parameters\t{model.license}\t{model.source_text}")
            return 0
        if arguments.command == "prepare-all":
            for name in arguments.names:
                _prepare(name, arguments.directory / name)
            return 0
        return _prepare(arguments.name, arguments.out)
    except MartletError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1


def _prepare(name: str, directory: Path) -> int:
    model = find(name)  # before torch is imported: a wrong name is answered at once
    from martlet_inputs.base_models.prepare import prepare

    prepare(model, directory.resolve(), say=print)
    print(f"{name} is at {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
