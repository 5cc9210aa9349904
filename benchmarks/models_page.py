"""The page of architectures, from the JSON of the runs. Imports nothing but the standard library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from environment import ROOT
from page_parts import Footnotes, where_run

DATA = ROOT / "docs" / "support" / "models.json"
PAGE = ROOT / "docs" / "support" / "models.md"

#: Trial -> heading; in the order in which they are made.
TRIALS: Mapping[str, str] = {
    "loads": "loads",
    "trains": "LoRA trains",
    "reloads": "adapter reads back",
    "merges": "merges",
    "generates": "generates",
}
_PICTURES = "it reads pictures: transformers makes its text model alone by this class, and then doesn't know the text model's config"
#: What an architecture is, where that says more than the error that it ends with.
_WHY: Mapping[str, str] = {
    "gemma3n": "its vision tower is timm's, which the trainer's environment doesn't hold; its text model (gemma3n_text) trains",
    "gemma4_assistant": "it drafts for another model, whose hidden states it needs",
    "gemma4_unified_assistant": "it drafts for another model, whose hidden states it needs",
    "laguna": "transformers renames shared_experts where it has that name already, and peft then finds no place for that part",
    "musicgen": "it predicts codes of sound in several books at once, not text",
    "musicgen_melody": "it predicts codes of sound in several books at once, not text",
}

_INTRODUCTION = """# Which architectures train

`make support-models` wrote this page: every architecture that transformers has a causal language model of
(`MODEL_FOR_CAUSAL_LM_MAPPING`) was really tried, on a CPU, on a tiny model with random weights (one layer of each kind, two at least;
width 64; bytes as tokens), and its outcome is in [models.json](models.json). A test sees to it that the page says what the JSON says, and
another one tries a few architectures again.

- **loads**: the trainer's loader reads what transformers wrote, from safetensors.
- **LoRA trains**: recipe `sft`, all linear layers but for those that `families.toml` keeps out; the loss falls over 24 steps.
- **adapter reads back**: peft and transformers alone, with attention of their own, get the validation loss that the trainer got, to a
  thousandth, and another one without the adapter.
- **merges**: by recipe `merge`; the merged model, read back from disk, gives the log-probabilities of the unmerged one, to a thousandth of a
  nat on average.
- **generates**: four tokens with the adapter.
- **without padding**: rows lie end to end in a batch, so that packing is possible. Where this isn't `yes`, batches are padded, which costs
  time and nothing else; packing is refused.

- **vLLM**: by `make support-served-models`, the merged model of an architecture whose heads are 32 numbers wide, served by vLLM's CPU build as a
  replica starts it. `yes`: the log-probabilities of five texts' tokens are transformers' of the same files, within a hundredth of what tuning
  changed, and none of them is off by more than 0.02; the eight tokens that it writes are those that transformers writes. `by transformers`:
  the same, by transformers' own code inside vLLM, which has none of its own for the architecture.
- **adapter in vLLM**: the adapter, loaded by the running engine and once more put on the merged model, is told apart in the same way. Where
  vLLM starts with the model only if it needn't take adapters, a replica does just that, and refuses adapters with the remedy to merge them.

`wrong` under vLLM is a warning: the engine answers, with other numbers than transformers. `MARTLET_ENGINE=transformers` computes by
transformers' own code ([services/inference](../../services/inference/README.md)).

It shows **that an architecture works, not how good a model is**."""


def page(record: Mapping[str, Any]) -> str:
    """The page."""
    cells, served, notes = record["cells"], record.get("served", {"cells": {}}), Footnotes()
    headings = ["architecture", "class", *TRIALS.values(), "without padding", "vLLM", "adapter in vLLM"]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    lines += [_row(name, cell, served["cells"].get(name), notes) for name, cell in sorted(cells.items())]
    whole = sum(all(cell.get(trial) == "yes" for trial in TRIALS) for cell in cells.values())
    share = f"**{whole} of {len(cells)} architectures ({whole / max(1, len(cells)):.1%}) pass all five.**"
    why = ["## Remarks", "\n".join(notes.lines())] if notes.lines() else []
    where = [*where_run(record), *(f"vLLM: {line[0].lower()}{line[1:]}" for line in where_run(served))]
    return "\n\n".join([_INTRODUCTION, share, *_count(served["cells"]), "\n".join(lines), *why, *where]) + "\n"


def _count(served: Mapping[str, Any]) -> list[str]:
    good = [outcome for outcome in served.values() if outcome["served"] == "yes"]
    if not good:
        return []
    lent = sum(_is_lent(outcome) for outcome in good)
    adapters = sum(outcome.get("adapter", {}).get("served") == "yes" for outcome in good)
    return [
        f"**vLLM serves {len(good)} of {len(served)} merged models, {len(good) - lent} by its own code and {lent} by transformers' inside it; of "
        f"{adapters} of these it takes the adapter, too.**"
    ]


def _is_lent(outcome: Mapping[str, Any]) -> bool:
    """Whether vLLM runs transformers' code."""
    return str(outcome["class"]).startswith("Transformers")


def _row(name: str, cell: Mapping[str, Any], served: Mapping[str, Any] | None, notes: Footnotes) -> str:
    shown = []
    for trial in TRIALS:
        outcome = cell.get(trial, "")
        if outcome in ("", "yes"):
            shown.append(outcome + (" (without a cache)" if trial == "generates" and "cache" in cell else ""))
        else:
            shown.append(f"no {notes.mark(_WHY.get(name, outcome))}")
    packs = cell.get("packs", "")
    shown.append(packs if packs in ("", "yes") else f"padded {notes.mark(packs)}")
    shown += _served(cell, served, notes)
    return f"| `{name}` | {cell['class']} | " + " | ".join(shown) + " |"


def _served(cell: Mapping[str, Any], served: Mapping[str, Any] | None, notes: Footnotes) -> tuple[str, str]:
    """What the row says of vLLM; nothing where there is no merged model."""
    if cell.get("merges") != "yes":
        return "", ""
    if served is None:
        return "not run", ""
    if served["served"] != "yes":
        return f"{served['served']} {notes.mark(_short(served['message']))}", ""
    adapter = served.get("adapter") or {"served": "no", "message": served.get("with_adapters", "")}
    taken = "yes" if adapter["served"] == "yes" else f"{adapter['served']} {notes.mark(_short(adapter['message']))}"
    return "by transformers" if _is_lent(served) else "yes", taken


def _short(message: str) -> str:
    """A refusal of vLLM without the list of all that it knows."""
    for tail in (
        " Supported architectures: ",
        " [type=",
        " Please ",
        " The available parameters ",
        " If you were trying ",
    ):
        message = message.partition(tail)[0]
    return message.replace("ValidationError: 1 validation error for ModelConfig Value error, ", "")
