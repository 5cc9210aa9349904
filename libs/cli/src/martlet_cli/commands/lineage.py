"""``lineage NAME``: where a model or an artifact comes from, and its model card."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.text import Text
from rich.tree import Tree

from martlet_cli.commands.files import when
from martlet_cli.context import Context, Subparsers, command
from martlet_cli.output import duration, size

_EXAMPLE = """examples:
  martlet lineage ft:smollm2-135m-instruct:acme:headlines:12345678
  martlet lineage headlines --card --out README.md"""
_METRICS_SHOWN = 4
_SETTINGS = ("method", "recipe", "suffix", "precision")


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = command(subparsers, "lineage", _lineage, "show where a model or an artifact comes from", epilog=_EXAMPLE)
    parser.add_argument("name", help="a model, an alias, artifacts/<id> or file-<id>")
    parser.add_argument("--card", action="store_true", help="write a model card (README.md in Hugging Face's form)")
    parser.add_argument("--out", type=Path, help="file to write the card to (default: print it)")


def _lineage(context: Context, arguments: argparse.Namespace) -> int:
    path = f"/lineage/{quote(arguments.name, safe='/:@')}"
    if arguments.card or arguments.out:
        target = arguments.out
        if target is None:
            context.output.console.file.write(context.gateway.text(f"{path}?form=card"))
            return 0
        context.gateway.download(f"{path}?form=card", target)
        context.output.say(f"written to {target}")
        return 0
    found = context.gateway.call("GET", path)
    if context.output.as_json:
        context.output.json(found)
    else:
        context.output.console.print(tree(found))
    return 0


def tree(node: Mapping[str, Any]) -> Tree:
    """A lineage for people."""
    top = Tree(_label(node), guide_style="dim")
    _grow(top, node)
    for evaluation in node.get("evaluations") or []:
        text = Text.assemble(("evaluated by ", "dim"), evaluation["job"])
        for name, metric in list(evaluation["metrics"].items())[:_METRICS_SHOWN]:
            value = metric.get("value") if isinstance(metric, Mapping) else metric
            text.append(f"  {name} {value:.4g}", "green")
        top.add(text)
    return top


def _grow(branch: Tree, node: Mapping[str, Any]) -> None:
    for line in _lines(node):
        branch.add(line)
    for parent in node["parents"]:
        _grow(branch.add(_label(parent)), parent)


def _label(node: Mapping[str, Any]) -> Text:
    text = Text.assemble((f"{node['role']}: " if node.get("role") else "", "dim"), (node["name"], "bold"))
    if node.get("alias"):
        text.append(f"  (alias {node['alias']})", "magenta")
    text.append(f"  {node['kind'].replace('_', ' ')}", "cyan")
    if node.get("size_bytes"):
        text.append(f"  {size(node['size_bytes'])}", "dim")
    if node.get("sha256"):
        text.append(f"  sha256 {node['sha256'][:12]}", "dim")
    if node.get("revision"):
        text.append(f"  revision {node['revision']}", "dim")
    if node.get("note"):
        text.append(f"  {node['note']}", "yellow")
    return text


def _lines(node: Mapping[str, Any]) -> list[Text]:
    """What is known of how it was made."""
    lines = []
    job = node.get("job")
    if job:
        text = Text.assemble(("made by ", "dim"), f"{job['kind']} job {job['id']}")
        text.append(f"  {duration(job['seconds'])}" if job.get("seconds") else "", "dim")
        text.append(f"  {job['run']}, step {job['step']}" if job.get("run") else "", "dim")
        for name in _SETTINGS:
            if job["spec"].get(name):
                text.append(f"  {name} {job['spec'][name]}")
        for name, value in list(job["metrics"].items())[:_METRICS_SHOWN]:
            text.append(f"  {name} {value:.4g}", "green")
        lines.append(text)
    made_by = node.get("made_by") or {}
    if made_by:
        words = [f"{name.replace('_', ' ')} {value}" for name, value in made_by.items()]
        lines.append(Text.assemble(("with ", "dim"), ", ".join(words), (f", {when(node.get('create_time'))}", "dim")))
    return lines
