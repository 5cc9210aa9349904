"""The page of recipes and tuners, from the JSON of the runs. Imports nothing but the standard library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from environment import ROOT
from page_parts import Footnotes, where_run

DATA = ROOT / "docs" / "support" / "methods.json"
PAGE = ROOT / "docs" / "support" / "methods.md"

RECIPES = (
    *("sft", "pretrain", "dpo", "orpo", "cpo", "simpo", "kto", "grpo", "rloo", "distill"),
    *("sequence_classification", "reward", "embedding", "reranker", "token_classification"),
)
#: Tuners, and variants of LoRA -> what becomes of their results.
TUNERS: Mapping[str, str] = {
    "lora": "as it is",
    "lora, rsLoRA": "as it is",
    "lora, PiSSA": "as it is",
    "lora, OLoRA": "as it is",
    "lora, EVA": "as it is",
    "lora, LoRA-GA": "as it is",
    "lora, LoRA+": "as it is",
    "lora, NEFTune": "as it is",
    "lora, DoRA": "merged",
    "qlora": "as it is",
    "qlora, LoftQ": "as it is",
    "full": "as it is",
    "full, frozen in part": "as it is",
    "full, GaLore": "as it is",
    "full, APOLLO": "as it is",
    "lisa": "as it is",
    "badam": "as it is",
    "llamapro": "as it is",
    "longlora": "as it is",
    "adalora": "merged",
    **dict.fromkeys(
        ("loha", "lokr", "boft", "oft", "hra", "vera", "randlora", "vblora", "fourierft", "miss", "shira", "road"),
        "merged",
    ),
    **dict.fromkeys(("delora", "ia3", "ln_tuning"), "merged"),
    "adapter": "no: layers of our own; martlet reads them",
    **dict.fromkeys(("prompt_tuning", "prefix_tuning", "p_tuning"), "no: virtual tokens; peft reads them"),
}

#: What variants of a tuner ask for, and the numbers that go with them.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "lora, DoRA": {"kind": "lora", "use_dora": True},
    "lora, rsLoRA": {"kind": "lora", "use_rslora": True},
    "lora, PiSSA": {"kind": "lora", "init_weights": "pissa"},
    "lora, OLoRA": {"kind": "lora", "init_weights": "olora"},
    "lora, EVA": {"kind": "lora", "init_weights": "eva"},
    "lora, LoRA-GA": {"kind": "lora", "init_weights": "lora_ga"},
    "qlora, LoftQ": {"kind": "qlora", "init_weights": "loftq"},
    "lora, LoRA+": {"kind": "lora"},
    "full, GaLore": {"kind": "full"},
    "full, APOLLO": {"kind": "full"},
    "full, frozen in part": {"kind": "full", "options": {"freeze_parameters_ratio": 0.5}},
    "lora, NEFTune": {"kind": "lora"},
}
NUMBERS: Mapping[str, Mapping[str, Any]] = {
    "full, GaLore": {"optimizer": "galore_adamw", "projection_rank": 16, "projection_interval": 9},
    "full, APOLLO": {"optimizer": "apollo_adamw", "projection_rank": 16, "projection_interval": 9},
    "lora, LoRA+": {"lora_plus_ratio": 4},
    "lora, NEFTune": {"neftune_noise_alpha": 5},
}

_INTRODUCTION = """# Which recipe trains with which tuner

`python benchmarks/support_methods.py`, in the trainer's environment, wrote this page: each cell was really run, on a CPU, on a tiny random
Llama (two layers, bytes as tokens), and its outcome is in [methods.json](methods.json). A test sees to it that the page says what the JSON says.

`yes`: the loss falls over 24 steps (with `grpo` and `rloo`: the reward rises); the same training, stopped half-way and gone on with from its
checkpoint, ends with the same weights, byte by byte; peft (or transformers; of `adapter` the trainer's own code) reads the result back, and it
says something else than the base model; an adapter merges, and the merged model says what the adapter said. It shows **that a combination
works, not how good it is**.
`refused`: at submission, with what to do instead; the JSON has the words. What each recipe does on real data is in
[benchmarks/RESULTS.md](../../benchmarks/RESULTS.md).

Served: replicas take plain LoRA adapters and whole models as they are, and refuse other adapters with the words that tell how to merge them
(`martlet_core.model_rules`)."""

#: What an outcome begins with where the request isn't taken.
_REFUSED = "InvalidArgument: spec."


def page(record: Mapping[str, Any]) -> str:
    """The page."""
    cells, notes = record["cells"], Footnotes()
    lines = ["| tuner | " + " | ".join(f"`{name}`" for name in RECIPES) + " | served |"]
    lines.append("|---" * (len(RECIPES) + 2) + "|")
    for tuner, served in TUNERS.items():
        row = " | ".join(_cell(cells.get(f"{recipe}/{tuner}"), notes) for recipe in RECIPES)
        lines.append(f"| {_shown(tuner)} | {row} | {served} |")
    whole = len(RECIPES) * len(TUNERS)
    count = "" if len(cells) == whole else f"**{len(cells)} of {whole} cells have been run.**"
    why = ["## Remarks", "\n".join(notes.lines())] if notes.lines() else []
    parts = [_INTRODUCTION, count, "\n".join(lines), *why, *where_run(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shown(tuner: str) -> str:
    name, _, variant = tuner.partition(", ")
    return f"`{name}`{f', {variant}' if variant else ''}"


def _cell(outcome: Mapping[str, Any] | None, notes: Footnotes) -> str:
    if outcome is None:
        return "not run"
    trials = {"trains": "trains", "resumes": "resumes exactly", "reads_back": "is read back", "merges": "merges"}
    if str(outcome["trains"]).startswith(_REFUSED):
        return "refused"
    bad = [(words, outcome[name]) for name, words in trials.items() if outcome.get(name, "yes") != "yes"]
    if not bad:
        return "yes"
    return "; ".join(f"not: {words} {notes.mark(why)}" for words, why in bad)
