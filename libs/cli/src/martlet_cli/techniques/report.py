"""The comparison to read: a table and two plots, as JSON, Markdown and a page that stands alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from martlet_cli.output import duration, size
from martlet_cli.techniques.bench import BASE, Budget, Measured
from martlet_cli.techniques.catalog import Technique
from martlet_cli.techniques.plots import Point, scatter


@dataclass(frozen=True)
class Column:
    """A column of the table: where its number comes from, and how it is written."""

    title: str
    name: str
    written: Callable[[float], str]


COLUMNS = (
    Column("trained parameters", "trained_parameters", lambda v: f"{v / 1e6:.3f} M" if v < 1e7 else f"{v / 1e6:.1f} M"),
    Column("learning rate", "learning_rate", lambda v: f"{v:.2g}"),
    Column("peak memory", "peak_memory_bytes", size),
    Column("training", "train_seconds", duration),
    Column("samples/s", "samples_per_second", lambda v: f"{v:.2f}"),
    Column("tokens/s", "tokens_per_second", lambda v: f"{v:.0f}"),
    Column("train loss", "train_loss", lambda v: f"{v:.3f}"),
    Column("eval loss", "validation_loss", lambda v: f"{v:.3f}"),
    Column("accuracy", "accuracy", lambda v: f"{v:.1%}"),
    Column("size", "size_bytes", size),
    Column("served tokens/s", "served_tokens_per_second", lambda v: f"{v:.0f}"),
)
#: Headings of the table.
TITLES = ("technique", *(column.title for column in COLUMNS), "served")


@dataclass(frozen=True)
class Line:
    """A technique over all its seeds.

    Attributes:
        name: of the technique.
        title: for people.
        merged: whether it was merged before it was served.
        numbers: means over the seeds.
        low: of the accuracy: the lower end of its interval, or the lowest of the seeds.
        high: alike.
        errors: what went wrong, by seed.
    """

    name: str
    title: str
    merged: bool
    numbers: Mapping[str, float]
    low: float | None
    high: float | None
    errors: Mapping[int, str]


def lines(measured: Sequence[Measured], techniques: Mapping[str, Technique]) -> list[Line]:
    """A line a technique, in the order in which they were measured."""
    found = []
    for name in dict.fromkeys(one.technique for one in measured):
        all_seeds = [one for one in measured if one.technique == name]
        whole = [one for one in all_seeds if not one.error]
        common = [key for key in whole[0].numbers if all(key in one.numbers for one in whole)] if whole else []
        numbers = {key: fmean(one.numbers[key] for one in whole) for key in common}
        if len(whole) == 1:
            low, high = whole[0].interval or (None, None)
        else:
            seen = [one.numbers["accuracy"] for one in whole]
            low, high = (min(seen), max(seen)) if seen else (None, None)
        technique = techniques.get(name)
        found.append(
            Line(
                name=name,
                title=technique.title if technique else "untrained",
                merged=bool(technique and technique.merged),
                numbers=numbers,
                low=low,
                high=high,
                errors={one.seed: one.error for one in all_seeds if one.error},
            )
        )
    return found


def write(
    directory: Path,
    budget: Budget,
    seeds: Sequence[int],
    measured: Sequence[Measured],
    techniques: Mapping[str, Technique],
    about: Mapping[str, Any],
) -> None:
    """Write ``report.{json,md,html}`` and the plots; what was there is replaced.

    Args:
        directory: made if it isn't there.
        budget: what all share.
        seeds: of the trainings.
        measured: what is there so far.
        techniques: by name.
        about: machine, versions, date and whatever else is to stand over it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = lines(measured, techniques)
    plots, notes = _plots(found), _notes(found, budget, seeds, about)
    record = {
        **about,
        "budget": asdict(budget),
        "seeds": list(seeds),
        "techniques": {line.name: asdict(techniques[line.name]) for line in found if line.name in techniques},
        "measured": [one.to_dict() for one in measured],
    }
    _put(directory / "report.json", json.dumps(record, indent=2) + "\n")
    for name, svg in plots.items():
        _put(directory / f"{name}.svg", svg + "\n")
    _put(directory / "report.md", _markdown(found, plots, notes))
    _put(directory / "report.html", _page(found, plots, notes))


def cells(line: Line) -> dict[str, str]:
    """A line's cells by column title; empty where there is no number."""
    found = {"technique": line.title}
    for column in COLUMNS:
        value = line.numbers.get(column.name)
        text = "" if value is None else column.written(value)
        if column.name == "accuracy" and text and line.low is not None and line.high is not None:
            text += f" ({line.low:.1%} to {line.high:.1%})"
        found[column.title] = text
    if line.name != BASE and line.numbers:
        found["served"] = "merged" if line.merged else "as it is"
    return found


def _plots(found: Sequence[Line]) -> dict[str, str]:
    trained = [line for line in found if line.name != BASE]
    base = next((line.numbers.get("accuracy") for line in found if line.name == BASE), None)
    plots = {}
    for name, key, unit, title in (
        ("quality-memory", "peak_memory_bytes", 1e6, "peak memory of the training, MB"),
        ("quality-time", "train_seconds", 1.0, "training time, seconds"),
    ):
        points = [
            Point(line.name, line.numbers[key] / unit, line.numbers["accuracy"])
            for line in trained
            if key in line.numbers
        ]
        if points:
            plots[name] = scatter(points, title, "accuracy on held-out rows", base)
    return plots


def _notes(found: Sequence[Line], budget: Budget, seeds: Sequence[int], about: Mapping[str, Any]) -> list[str]:
    several = len(seeds) > 1
    notes = [
        f"{budget.base_model}; {budget.steps} steps of {budget.batch_size} rows of at most {budget.max_length} tokens; learning rate "
        f"{budget.learning_rate:g} for LoRA; {'seeds' if several else 'seed'} {', '.join(map(str, seeds))}; "
        "one job at a time.",
        "Numbers are means over the seeds; behind the accuracy, its lowest and highest."
        if several
        else "Behind the accuracy, its 95 % interval (bootstrap over rows).",
    ]
    notes += [f"{key}: {value}" for key, value in about.items()]
    notes += [f"{line.title} (seed {seed}) failed: {why}" for line in found for seed, why in line.errors.items()]
    return notes


def _markdown(
    found: Sequence[Line],
    plots: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    rows = [[cells(line).get(title, "") for title in TITLES] for line in found]
    table = ["| " + " | ".join(TITLES) + " |", "|" + " --- |" + " ---: |" * (len(TITLES) - 2) + " --- |"]
    table += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    parts = ["# Techniques compared", *notes, "\n".join(table)]
    parts += [f"![{name.replace('-', ' by ')}]({name}.svg)" for name in plots]
    return "\n\n".join(parts) + "\n"


_PAGE_STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


def _page(
    found: Sequence[Line],
    plots: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in TITLES)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cells(line).get(title, ''))}</td>" for title in TITLES) + "</tr>"
        for line in found
    )
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Techniques compared</title><style>{_PAGE_STYLE}</style></head><body><h1>Techniques compared</h1>{said}"
        f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<div class="plots">{"".join(plots.values())}</div></body></html>\n'
    )


def _put(path: Path, text: str) -> None:
    """Replace a file at once, so that an interrupted command leaves the last whole one."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)
