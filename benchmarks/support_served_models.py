"""Fills the part of docs/support/models.{json,md} that tells what vLLM serves: each architecture's merged model, and its adapter.

    .martlet/envs/trainer/bin/python benchmarks/support_served_models.py [--only TYPE] [--again] [--page]

Each architecture is trained and merged as in ``support_models.py``, on a tiny model whose heads are as wide as vLLM's CPU kernels want them; then
``support_served_engine.py`` serves it in the environment of inference. What has an outcome is not run again, so the command goes on where it
ended. Needs both environments: ``martlet env sync trainer inference``.
"""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from environment import ROOT
from models_page import DATA, PAGE, page
from support_fork import apart
from support_models import Trial
from support_sweep import ask_vllm, sweep_parser

WORK = ROOT / ".martlet" / "support-served-models"
#: Heads of 32 numbers are the least that vLLM has kernels for on a CPU.
_HEAD_WIDTH = 32
_MAKE_SECONDS, _SERVE_SECONDS = 600.0, 900.0  # a busy machine is no reason to say no


def main() -> None:
    """Run what is missing, then write the page."""
    arguments = sweep_parser(__doc__, "*", "type of a config").parse_args()
    record: dict[str, Any] = json.loads(DATA.read_text())
    if not arguments.page:
        record.setdefault("served", {"cells": {}})
        serve(record, make(record, arguments.only, again=arguments.again))
    PAGE.write_text(page(record))
    print(f"written: {PAGE.name}")


def make(record: Mapping[str, Any], only: str, *, again: bool) -> list[dict[str, Any]]:
    """Train and merge the architectures that a pattern names, each in a fork; what vLLM is to serve. What is there is not made again."""
    import martlet_trainer.recipes.merge
    import martlet_trainer.recipes.training  # noqa: F401  # imported before the forks, which then start at once
    import served_answers  # noqa: F401

    specs = []
    for name, cell in record["cells"].items():
        done = name in record["served"]["cells"] and not again
        if not fnmatch(name, only) or done or cell.get("merges") != "yes":
            continue
        scratch = WORK / name
        file = scratch / "spec.json"
        if again or not file.is_file():
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            spec = apart(lambda name=name, scratch=scratch: spec_of(name, scratch), _MAKE_SECONDS)
            file.write_text(json.dumps(spec))
            print(f"made: {name}: {spec.get('message', '')}", flush=True)
        specs.append({"key": name, "limit_seconds": _SERVE_SECONDS, **json.loads(file.read_text())})
    return specs


def spec_of(name: str, scratch: Path) -> dict[str, Any]:
    """What is asked of vLLM: the merged model, and on it the adapter once more; or why there is nothing to ask."""
    from served_answers import expected, loaded

    try:
        trial = Trial(name, scratch, _HEAD_WIDTH)
        for step in ("loads", "trains", "merges"):
            if (said := getattr(trial, step)()) != "yes":
                return {"message": f"{step}: {said}"}
        base, adapter, merged = scratch / "base", scratch / "work/output/model", scratch / "merge/output/model"
        found = {"form": "whole", "model": str(merged), "task": "", **expected(loaded(merged, base), merged, base)}
        again = expected(loaded(adapter, merged), adapter, merged)
    except Exception as error:  # noqa: BLE001  # whatever stands against it is the outcome
        traceback.print_exc()
        return {"message": f"{type(error).__name__}: {error}".strip()[:300]}
    return {**found, "adapter": {**again, "form": "adapter", "base": str(merged), "model": str(adapter)}}


def serve(record: dict[str, Any], specs: list[dict[str, Any]]) -> None:
    """Let vLLM serve models; each outcome is written when it is there."""
    served = record["served"]

    def keep(key: str, outcome: Mapping[str, Any]) -> None:
        served["cells"][key] = {**outcome, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        served["cells"] = dict(sorted(served["cells"].items()))
        DATA.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    for spec in specs:
        if "form" not in spec:
            keep(spec["key"], {"served": "not made", "message": spec["message"]})
    ask_vllm(served, [spec for spec in specs if "form" in spec], WORK, keep)


if __name__ == "__main__":
    main()
