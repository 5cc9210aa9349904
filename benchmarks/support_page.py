"""Writes docs/support/quantization.md from the outcomes in docs/support/quantization.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from environment import ROOT
from page_parts import Footnotes

DATA = ROOT / "docs" / "support" / "quantization.json"
PAGE = ROOT / "docs" / "support" / "quantization.md"

#: Key of a cell -> heading.
ARCHITECTURES: Mapping[str, str] = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma3": "Gemma 3 (text)",
    "mistral": "Mistral",
    "qwen3-moe": "Qwen3-MoE",
    "smollm2": "SmolLM2-135M (Llama, real weights)",
}


@dataclass(frozen=True)
class Column:
    """A method, with its options.

    Attributes:
        name: as the table writes it.
        method: as a job writes it.
        family: whose environment it runs in.
        calibrated: whether it looks at texts.
        options: of the job.
    """

    name: str
    method: str
    family: str
    calibrated: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def key(self, architecture: str) -> str:
        """Key of a cell in the JSON."""
        return f"{self.name}/{architecture}"


COLUMNS = (
    Column("bnb-nf4", "bnb-nf4", "bnb"),
    Column("bnb-int8", "bnb-int8", "bnb"),
    Column("w8a8-int8", "w8a8-int8", "llmcompressor", True),
    Column("fp8-dynamic", "fp8-dynamic", "llmcompressor"),
    Column("w4a16", "w4a16", "llmcompressor", True),
    Column("gguf q8_0", "gguf", "gguf", options=(("gguf_type", "q8_0"),)),
    Column("gguf q4_0", "gguf", "gguf", options=(("gguf_type", "q4_0"),)),
    Column("awq", "awq", "awq", True),
    Column("gptq", "gptq", "gptqmodel", True),
)


#: Share of the weights that a method leaves as they are, from which on the page says so.
_WORTH_SAYING = 0.01

_INTRODUCTION = """# Which method quantizes which architecture

`python benchmarks/support_quantization.py` wrote this page: each cell is a job that was really run, on a CPU, and its outcome is in
[quantization.json](quantization.json). A test sees to it that the page says what the JSON says. What a method that isn't known to work on an
architecture says is a refusal; where the model's config is at hand, that is at submission."""

_TINY = """The models are tiny and random (two layers, bytes as tokens) and had 60 steps of training, so that they know which bytes are frequent
and not much else; the limit of quality was lifted for them. They show **that a method runs on an architecture, not how good it is there**: perplexity
would tell next to nothing, so the share of positions with the same most likely token is given. SmolLM2 has real weights (they once
went through Q4_1), and its perplexity ratio is given too; methods that calibrate saw 16 rows in windows of 128 tokens."""

_JOBS = """## Quantized and read back

By `martlet_quantizer.quantize.run`, in the method's own environment: quantized, written, read back from disk by the same family's engine, measured.
A cell has the share of positions with the same most likely token, and the size of the weights beside the unquantized model's. Jobs on tiny models run
their steps in forks of a process that has imported transformers, those on SmolLM2 in processes of their own, as a worker does."""

_ENGINES = """## Served by vLLM

What was written, served by vLLM's CPU build as the replica would: its arguments, its environment, its plugins, adapters switched on.
`yes`: it wrote eight tokens and scored held-out text, and its perplexity there, beside the unquantized model's in vLLM, is at most 1.25
times what the quantizer measured. SmolLM2 was served by the replica's own engine class, in a server process; the tiny models by vLLM's
`LLM` in forks of a process that has imported vLLM. GGUF files are for llama.cpp: no engine of Martlet serves them."""


def page(record: Mapping[str, Any]) -> str:
    """The page."""
    cells, notes = record["cells"], Footnotes()
    jobs = _table(lambda column, name: job_cell(column, name, cells.get(column.key(name), {}), notes))
    engines = _table(lambda column, name: engine_cell(column, cells.get(column.key(name), {}), notes))
    whole = len(COLUMNS) * len(ARCHITECTURES)
    count = (
        ""
        if len(cells) == whole
        else f"**{len(cells)} of {whole} cells have been run**; the command goes on with the others."
    )
    why = ["## Remarks", "\n".join(notes.lines())] if notes.lines() else []
    parts = [_INTRODUCTION, count, _TINY, _JOBS, jobs, _ENGINES, engines, *why, *_sources(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(cell: Callable[[Column, str], str]) -> str:
    lines = ["| method | " + " | ".join(ARCHITECTURES.values()) + " |", "|" + "---|" * (len(ARCHITECTURES) + 1)]
    lines += [
        f"| `{column.name}` | " + " | ".join(cell(column, name) for name in ARCHITECTURES) + " |" for column in COLUMNS
    ]
    return "\n".join(lines)


def job_cell(column: Column, architecture: str, cell: Mapping[str, Any], notes: Footnotes) -> str:
    """What the first table says of a cell."""
    job = cell.get("job")
    if job is None:
        return "not run"
    if job["quantized"] != "yes":
        return f"{job['quantized']} {notes.mark(job['message'])}"
    if job["reloaded"] != "yes":
        return f"not read back {notes.mark(job['message'])}"
    told = [f"{100 * job['top1_agreement']:.1f} %", f"size {job['size_ratio']:.2f}"]
    if architecture == "smollm2":
        told.append(f"perplexity x {job['perplexity_ratio']:.3f}")
    if (share := job.get("untouched_share", 0.0)) >= _WORTH_SAYING:
        remark = f"{share:.0%} of the weights (embeddings aside) stay in 16 bit: the library doesn't see the experts as linear layers"
        told.append(notes.mark(remark))
    return ", ".join(told)


def engine_cell(column: Column, cell: Mapping[str, Any], notes: Footnotes) -> str:
    """What the second table says of a cell."""
    if column.method == "gguf":
        return "no engine"
    if cell.get("job", {}).get("reloaded", "yes") != "yes":
        return ""
    if (engine := cell.get("engine")) is None:
        return "not run"
    return "yes" if engine["served"] == "yes" else f"{engine['served']} {notes.mark(engine['message'])}"


def _sources(record: Mapping[str, Any]) -> list[str]:
    """With which versions, on what, when."""
    versions: dict[str, dict[str, str]] = {}
    dates = set()
    for key, cell in record["cells"].items():
        column = next(c for c in COLUMNS if c.name == key.split("/")[0])
        versions.setdefault(column.family, {}).update(cell.get("job", {}).get("versions", {}))
        if engine := cell.get("engine"):
            versions.setdefault("inference", {})["vLLM"] = engine["vllm"]
        dates |= {part["date"] for part in cell.values()}
    lines = ["## Versions", "", "| environment | versions |", "|---|---|"]
    for family, found in sorted(versions.items()):
        lines.append(f"| {family} | {', '.join(f'{name} {number}' for name, number in sorted(found.items()))} |")
    machine = record["machine"]
    when = " to ".join(sorted({min(dates), max(dates)}))
    where = f"Run on {machine['cpu']}, {machine['cores']} cores, {machine['system']}, {when}."
    return ["\n".join(lines), where]
