"""A model card (README.md in Hugging Face's form) written from a lineage: what is known, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import yaml
from martlet_core.model_rules import BOTTLENECKS

from martlet_gateway.lineage import Node

_MOST_SHOWN = 40


def model_card(lineage: Node, evaluations: Sequence[Mapping[str, Any]], licenses: Mapping[str, str]) -> str:
    """The card's text.

    Args:
        lineage: of the model.
        evaluations: what ``Lineage.evaluations`` found.
        licenses: licence by base model, where it is known.
    """
    bases = list(dict.fromkeys(node.name for node in lineage.walk() if node.kind == "base"))
    lines = ["---", *_front_matter(lineage, bases, evaluations, licenses), "---", "", f"# {lineage.name}", ""]
    lines += _summary(lineage, bases)
    lines += ["## Where it comes from", "", "```", *_tree(lineage), "```", ""]
    lines += _training(lineage)
    lines += _metrics(lineage)
    lines += _evaluations(evaluations)
    return "\n".join(lines).rstrip() + "\n"


def _front_matter(
    lineage: Node, bases: Sequence[str], evaluations: Sequence[Mapping[str, Any]], licenses: Mapping[str, str]
) -> list[str]:
    found = {licenses[base] for base in bases if licenses.get(base)}
    front: dict[str, Any] = {"library_name": _library(lineage)}
    if bases:
        front["base_model"] = bases[0] if len(bases) == 1 else list(bases)
        relations = {"adapter": "adapter", "merged_model": "merge", "quantized_model": "quantized"}
        front["base_model_relation"] = relations.get(lineage.kind, "finetune")
    if len(found) == 1:
        front["license"] = found.pop().lower()
    front["tags"] = ["martlet", *sorted({node.job["kind"] for node in lineage.walk() if node.job})]
    if evaluations:
        front["model-index"] = [{"name": lineage.name, "results": [_result(e) for e in evaluations]}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip().split("\n")


def _library(lineage: Node) -> str:
    """What loads it."""
    if lineage.kind != "adapter":
        return "transformers"
    return "martlet" if lineage.facts.get("metadata", {}).get("tuner") == BOTTLENECKS else "peft"


def _result(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: _value(metric) for name, metric in evaluation["metrics"].items()}
    metrics = [{"type": name, "value": value} for name, value in values.items() if value is not None]
    dataset = evaluation["dataset"] or "rows of the suite"
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": dataset, "type": dataset},
        "metrics": metrics,
    }


def _value(metric: Any) -> float | None:
    return metric.get("value") if isinstance(metric, Mapping) else metric


def _summary(lineage: Node, bases: Sequence[str]) -> list[str]:
    facts = lineage.facts
    rows = [
        ("kind", lineage.kind.replace("_", " ")),
        ("base model", ", ".join(bases)),
        ("artifact", facts.get("artifact", "")),
        ("sha256 of its manifest", facts.get("sha256", "")),
        ("size", f"{facts['size_bytes']:,} bytes" if facts.get("size_bytes") else ""),
        ("made", _time(facts.get("create_time"))),
        ("by code", (facts.get("made_by") or {}).get("code_version", "")),
        ("in image", (facts.get("made_by") or {}).get("image", "")),
        ("run", lineage.job["run"] if lineage.job else ""),
    ]
    return [*_table(("", ""), [(name, f"`{value}`") for name, value in rows if value]), ""]


def _tree(node: Node, indent: str = "") -> Iterator[str]:
    role = f"{node.role}: " if node.role else ""
    made = f"  <- {node.job['kind']} job {node.job['id']}" if node.job else ""
    digest = f"  sha256 {node.facts['sha256'][:12]}" if node.facts.get("sha256") else ""
    revision = f"  revision {node.facts['revision']}" if node.facts.get("revision") else ""
    note = f"  ({node.note})" if node.note else ""
    yield f"{indent}{role}{node.name}  [{node.kind}]{digest}{revision}{made}{note}"
    for parent in node.parents:
        yield from _tree(parent, indent + "    ")


def _training(lineage: Node) -> list[str]:
    """How the weights were trained: the nearest training below."""
    for node in lineage.walk():
        if node.job and node.job["kind"] == "training":
            settings = dict(_flat(node.job["resolved"] or node.job["spec"]))
            rows = [(f"`{name}`", f"`{value}`") for name, value in list(settings.items())[:_MOST_SHOWN]]
            data = [p for p in node.parents if p.kind == "dataset"]
            lines = ["## Training", ""]
            for dataset in data:
                files = ", ".join(f"`{f['path']}` (sha256 `{f['sha256']}`)" for f in dataset.facts.get("files", [])[:5])
                lines += [f"{dataset.role}: `{dataset.name}`: {files}", ""]
            return [*lines, *_table(("setting", "value"), rows), ""]
    return []


def _metrics(lineage: Node) -> list[str]:
    rows = [
        (node.job["kind"], f"`{name}`", f"{value:.6g}")
        for node in lineage.walk()
        if node.job
        for name, value in node.job["metrics"].items()
    ]
    return ["## What the jobs measured", "", *_table(("job", "metric", "value"), rows), ""] if rows else []


def _evaluations(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for evaluation in evaluations:
        for name, metric in evaluation["metrics"].items():
            interval = ""
            if isinstance(metric, Mapping) and metric.get("low") is not None and metric.get("high") is not None:
                interval = f"{metric['low']:.4g} to {metric['high']:.4g}"
            value = _value(metric)
            if value is not None:
                rows.append((f"`{name}`", f"{value:.4g}", interval, f"{evaluation['rows']}", evaluation["job"]))
    if not rows:
        return []
    return ["## Evaluation", "", *_table(("metric", "value", "95 % interval", "rows", "job"), rows), ""]


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        where = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping):
            yield from _flat(value, where)
        elif value not in (None, "", [], {}):
            whole = isinstance(value, float) and value.is_integer()
            yield where, str(int(value)) if whole else value if isinstance(value, str) else json.dumps(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"

    return [row(head), "|" + "---|" * len(head), *(row(cells) for cells in rows)]


def _time(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else ""
