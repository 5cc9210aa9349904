"""The page of recipes and tuners, from the JSON of the runs. Imports nothing but the standard library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from environment import ROOT
from page_parts import Footnotes, where_run

DATA = ROOT / "docs" / "support" / "methods.json"
PAGE = ROOT / "docs" / "support" / "methods.md"

RECIPES = (
    *("sft", "pretrain", "dpo", "orpo", "cpo", "simpo", "kto", "grpo", "rloo", "distill"),
    *("sequence_classification", "reward", "embedding", "reranker", "token_classification"),
)
#: Tuners, and variants of them.
TUNERS = (
    *(
        "lora",
        "lora, rsLoRA",
        "lora, PiSSA",
        "lora, OLoRA",
        "lora, EVA",
        "lora, LoRA-GA",
        "lora, LoRA+",
        "lora, NEFTune",
    ),
    *("lora, DoRA", "qlora", "qlora, LoftQ", "full", "full, frozen in part", "full, GaLore", "full, APOLLO"),
    *("lisa", "badam", "llamapro", "longlora", "adalora", "loha", "lokr", "boft", "oft", "hra", "vera", "randlora"),
    *("vblora", "fourierft", "miss", "shira", "road", "delora", "ia3", "ln_tuning"),
    *("adapter", "prompt_tuning", "prefix_tuning", "p_tuning"),
)

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
[benchmarks/RESULTS.md](../../benchmarks/RESULTS.md)."""

_SERVED = """## What vLLM serves of the results

By `make support-served`: each result was made anew, on a Llama with heads of 32 numbers (narrower ones have no kernel on a CPU), and given to
vLLM as a replica starts it: its arguments, its environment, its plugin. `martlet_core.model_rules`, which the replicas go by, says in which
form: `adapter`, a plain LoRA adapter, loaded while the engine runs; `merged`, an adapter that replicas refuse with the words that tell how to
merge it, merged by recipe `merge`; `whole`, a whole model as it is.

Each of the three means **yes**: the log-probabilities of five texts' tokens (of a model that ends in a head: what the head makes of the
texts, before its activation) are transformers' of the same files, within a hundredth of what tuning changed, and none of them is off by more
than 0.02; the eight tokens that it writes are those that transformers writes. Results of one shape were asked of one engine, which loaded
them one after the other; what doesn't pass there gets an engine of its own."""

#: What an outcome begins with where the request isn't taken.
_REFUSED = "InvalidArgument: spec."


def page(record: Mapping[str, Any]) -> str:
    """The page."""
    cells, notes = record["cells"], Footnotes()
    table = _table(lambda key: _cell(cells.get(key), notes))
    whole = len(RECIPES) * len(TUNERS)
    count = "" if len(cells) == whole else f"**{len(cells)} of {whole} cells have been run.**"
    parts = [_INTRODUCTION, count, table, *where_run(record)]
    if served := record.get("served", {}).get("cells"):
        parts += [_SERVED, _count(cells, served)]
        parts += [_table(lambda key: _served(cells.get(key), served.get(key), notes)), *where_run(record["served"])]
    why = ["## Remarks", "\n".join(notes.lines())] if notes.lines() else []
    return "\n\n".join(part for part in [*parts, *why] if part) + "\n"


def _table(cell: Callable[[str], str]) -> str:
    lines = ["| tuner | " + " | ".join(f"`{name}`" for name in RECIPES) + " |", "|---" * (len(RECIPES) + 1) + "|"]
    for tuner in TUNERS:
        row = " | ".join(cell(f"{recipe}/{tuner}") for recipe in RECIPES)
        lines.append(f"| {_shown(tuner)} | {row} |")
    return "\n".join(lines)


def _count(cells: Mapping[str, Any], served: Mapping[str, Any]) -> str:
    good = sum(outcome["served"] == "yes" for outcome in served.values())
    made = sum(outcome["trains"] == "yes" for outcome in cells.values())
    most = max((outcome["most"] for outcome in served.values() if "most" in outcome), default=0.0)
    return f"**{good} of {made} results are served.** The number that is farthest from transformers' differs by {most:.1g}."


def _served(trained: Mapping[str, Any] | None, outcome: Mapping[str, Any] | None, notes: Footnotes) -> str:
    """What the second table says of a cell; nothing where there is no result to serve."""
    if trained is None or trained["trains"] != "yes":
        return ""
    if outcome is None:
        return "not run"
    if outcome["served"] == "yes":
        return str(outcome["form"])
    return f"{'no' if outcome['served'] == 'refused' else outcome['served']} {notes.mark(outcome['message'])}"


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
