"""Fills the part of docs/support/methods.{json,md} that tells what vLLM serves: each recipe's and tuner's result, made anew and asked.

    .martlet/envs/trainer/bin/python benchmarks/support_served.py [--only RECIPE/TUNER] [--again] [--page]

Each cell's result is trained on a tiny Llama whose heads are as wide as vLLM's CPU kernels want them, and merged where a replica refuses it
as it is; then ``support_served_engine.py`` serves it in the environment of inference. What has an outcome is not run again, so the command
goes on where it ended. Needs both environments: ``martlet env sync trainer inference``.
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
from methods_page import DATA, PAGE, RECIPES, TUNERS, VARIANTS, page
from support_sweep import ask_vllm, sweep_parser

WORK = ROOT / ".martlet" / "support-served"
#: Heads of 32 numbers are the least that vLLM has kernels for on a CPU.
_SHAPE: Mapping[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
#: Of an engine, with all the results that it is asked about in turn.
_LIMIT_SECONDS = 3600.0


def main() -> None:
    """Run what is missing, then write the page."""
    arguments = sweep_parser(__doc__, "*/*", "RECIPE/TUNER").parse_args()
    record: dict[str, Any] = json.loads(DATA.read_text())
    if not arguments.page:
        record.setdefault("served", {"cells": {}})
        specs = make(record, arguments.only, again=arguments.again)
        ask_vllm(record["served"], specs, WORK, lambda key, outcome: keep(record, key, outcome))
    PAGE.write_text(page(record))
    print(f"written: {PAGE.name}")


def make(record: dict[str, Any], only: str, *, again: bool) -> list[dict[str, Any]]:
    """Make the results of the cells that a pattern names; what vLLM is to serve. A result that is there is not made again."""
    from martlet_trainer.testing_cases import save_tiny_llama, save_tiny_teacher

    if not (WORK / "teacher").is_dir():
        save_tiny_llama(WORK / "base", **_SHAPE)
        save_tiny_teacher(WORK / "teacher")
    specs = []
    for recipe in RECIPES:
        for tuner in TUNERS:
            key = f"{recipe}/{tuner}"
            done = key in record["served"]["cells"] and not again
            if not fnmatch(key, only) or done or record["cells"].get(key, {}).get("trains") != "yes":
                continue
            spec = _made(recipe, tuner, WORK / key.replace("/", "-").replace(" ", ""), again=again)
            if "served" in spec:
                keep(record, key, spec)
            else:
                specs.append({"key": key, "limit_seconds": _LIMIT_SECONDS, **spec})
    return specs


def _made(recipe: str, tuner: str, scratch: Path, *, again: bool) -> dict[str, Any]:
    file = scratch / "spec.json"
    if file.is_file() and not again:
        return json.loads(file.read_text())
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        spec = result_of(recipe, tuner, WORK / "base", scratch)
    except Exception as error:  # noqa: BLE001  # whatever stands against it is the outcome
        traceback.print_exc()
        return {"served": "no", "message": f"{type(error).__name__}: {error}".strip()[:300]}
    scratch.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(spec))
    print(f"made: {recipe}/{tuner}", flush=True)
    return spec


def result_of(recipe: str, tuner: str, base: Path, scratch: Path) -> dict[str, Any]:
    """Train, ask the replicas' rule in which form the result is served, merge it if it is to be, and ask transformers.

    Returns:
        ``form`` (``adapter``, ``merged`` or ``whole``), the directories, and what is asked of vLLM; or why it is not served.
    """
    from martlet_core.artifacts.types import PublishedModel
    from martlet_core.errors import FailedPrecondition
    from martlet_core.model_rules import check_plain_lora
    from martlet_trainer.tuners.kinds import KINDS
    from served_answers import expected, loaded
    from support_methods import merge, train

    kind = KINDS[str(VARIANTS.get(tuner, {"kind": tuner})["kind"])]
    facts: Mapping[str, Any] = {"tuner": tuner}
    form = "whole" if kind.whole_model else "adapter"
    directory = scratch / "whole/output/model"
    if not kind.virtual_tokens:
        output = train(recipe, tuner, scratch / "whole", base)[0].outputs["model"]
        facts = {**_adapter_config(directory), **output.metadata}
    if form == "adapter":
        try:
            check_plain_lora(PublishedModel(tuner, "adapter"), facts)
        except FailedPrecondition as refusal:
            if refusal.reason != "ADAPTER_NEEDS_MERGE":
                return {"form": form, "served": "refused", "message": refusal.message}
            merge(recipe, tuner, base, scratch)
            form, directory = "merged", scratch / "merge/output/model"
    spec = {"form": form, "base": str(base), "model": str(directory), "task": facts.get("task", "")}
    return {**spec, **expected(loaded(directory, base), directory, base, recipe)}


def _adapter_config(directory: Path) -> Mapping[str, Any]:
    file = directory / "adapter_config.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def keep(record: dict[str, Any], key: str, outcome: Mapping[str, Any]) -> None:
    """Write one outcome, and drop the files of a result that was served."""
    cells = record["served"]["cells"]
    cells[key] = {**outcome, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    order = [f"{recipe}/{tuner}" for recipe in RECIPES for tuner in TUNERS]
    record["served"]["cells"] = {name: cells[name] for name in order if name in cells}
    DATA.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
