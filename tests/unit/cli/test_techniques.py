"""``martlet bench techniques``: its table of techniques, its runs, its report."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from martlet_cli.commands import bench as bench_command
from martlet_cli.context import Parser
from martlet_cli.techniques import report
from martlet_cli.techniques.bench import BASE, Budget, Measured, definition
from martlet_cli.techniques.catalog import chosen, known
from martlet_cli.techniques.plots import Point, front, scatter
from martlet_core.errors import InvalidArgument

BUDGET = Budget("tiny", "artifacts/a", "artifacts/b", "classification", 10, 4, 1e-3, 64, None)
NUMBERS = {
    "accuracy": 0.6,
    "trained_parameters": 4.9e6,
    "learning_rate": 1e-3,
    "peak_memory_bytes": 1.5e9,
    "train_seconds": 100.0,
}


def test_the_table_is_read_when_its_names_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at every start of the command."""
    asked: list[None] = []
    monkeypatch.setattr(bench_command, "known", lambda: asked.append(None) or known())
    parser = Parser(prog="martlet")
    commands = parser.add_subparsers()
    bench_command.add(commands)
    assert asked == []
    shown = commands.choices["bench"]._subparsers._group_actions[0].choices["techniques"].format_help()
    assert "lora-attention" in shown
    assert asked


def test_notes_say_what_they_are_about() -> None:
    assert bench_command._notes(["machine: 2 cores: slow"]) == {"machine": "2 cores: slow"}
    for wrong in ("2 cores", ": slow", "machine:"):
        with pytest.raises(InvalidArgument, match="--note"):
            bench_command._notes([wrong])


def test_at_least_twelve_techniques_are_known() -> None:
    techniques = known()
    assert len(techniques) >= 12
    assert [one.name for one in chosen(["dora", "full"], techniques)] == ["dora", "full"]
    assert chosen(None, techniques) == list(techniques.values())
    with pytest.raises(InvalidArgument, match="'dorra' isn't one of lora, "):
        chosen(["dorra"], techniques)


def test_a_file_adds_techniques_and_takes_the_place_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        '[mine]\ntuner = {kind = "lora", lora_rank = 2}\n[lora]\ntitle = "small"\ntuner = {lora_rank = 1}\n'
    )
    techniques = known(path)
    assert (techniques["mine"].title, techniques["mine"].learning_rate_factor) == ("mine", 1.0)
    assert techniques["lora"].title == "small"
    assert list(techniques)[-1] == "mine"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[a]\ntuner = 3\n", r"\[a\] tuner must be a dict"),
        ("[a]\ntitle = 'x'\n", r"\[a\] has no `tuner`"),
        ("[a]\ntuner = {}\nrate = 1\n", r"\[a\] has no key 'rate'; it may have hyperparameters, "),
        ("[a]\ntuner = {}\nlearning_rate_factor = 0\n", "must be above 0"),
        ("[a]\ntuner = {}\nlearning_rate_factor = 'x'\n", "must be a number"),
        ("a = 3\n", "must be a table"),
        ("[a", "is no TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_its_place(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=what):
        known(path)


def test_all_techniques_share_model_rows_budget_and_seed() -> None:
    for technique in known().values():
        steps = definition(technique, BUDGET, 3)["steps"]
        training = steps["train"]["with"]
        shared = (
            training["base_model"],
            training["training_dataset"],
            training["validation_dataset"],
            training["seed"],
        )
        assert shared == ("tiny", "artifacts/a", "artifacts/b", 3)
        numbers = training["hyperparameters"]
        assert (numbers["max_steps"], numbers["per_device_batch_size"]) == (10, 4)
        assert numbers["learning_rate"] == pytest.approx(1e-3 * technique.learning_rate_factor)
        assert ("merge" in steps) == technique.merged
        asked = steps["evaluate"]["with"]["targets"][0]["model"]
        assert asked == ("${merge.model}" if technique.merged else "${train.model}")


def test_the_front_holds_what_nobody_beats() -> None:
    cheap, good, beaten, equal = Point("a", 1, 0.5), Point("b", 3, 0.7), Point("c", 4, 0.6), Point("d", 3, 0.7)
    assert front([beaten, good, cheap]) == [cheap, good]
    assert front([good, equal, cheap]) == [cheap, good]
    assert front([Point("x", 1, 0.4), cheap]) == [cheap]


def test_a_plot_is_well_formed_and_keeps_its_labels_inside() -> None:
    points = [Point(f"technique-{n}", 1000 + n % 3, 0.5 + n / 1000) for n in range(20)] + [Point("<&>", 999, 0.4)]
    drawn = ElementTree.fromstring(scatter(points, "memory", "accuracy", 0.45))
    _, _, width, height = (float(v) for v in drawn.attrib["viewBox"].split())
    texts = [e for e in drawn.iter() if e.tag.endswith("text")]
    assert {"<&>", "untrained", *(p.label for p in points)} <= {e.text for e in texts}
    circles = [e for e in drawn.iter() if e.tag.endswith("circle")]
    assert len(circles) == len(points)
    assert all(0 < float(c.attrib["cx"]) < width and 0 < float(c.attrib["cy"]) < height for c in circles)
    scatter([Point("only", 5, 0.5)], "memory", "accuracy")  # a single point has a range of its own


def test_seeds_are_averaged_and_failures_are_told() -> None:
    other = {**NUMBERS, "accuracy": 0.7, "train_loss": 0.3}
    measured = [
        Measured("lora", 1, "r1", "", NUMBERS, (0.55, 0.65)),
        Measured("lora", 2, "r2", "", other, (0.65, 0.75)),
        Measured("dora", 1, "r3", "train: out of memory"),
        Measured("ia3", 1, "r4", "", NUMBERS, (0.5, 0.7)),
    ]
    lora, dora, ia3 = report.lines(measured, known())
    assert lora.numbers == pytest.approx({**NUMBERS, "accuracy": 0.65})  # a number that one seed lacks has no mean
    assert (lora.low, lora.high) == (0.6, 0.7)
    assert (dora.numbers, dora.errors) == ({}, {1: "train: out of memory"})
    assert (ia3.low, ia3.high, ia3.merged) == (0.5, 0.7, True)
    assert report.cells(ia3)["accuracy"] == "60.0% (50.0% to 70.0%)"
    assert report.cells(ia3)["served"] == "merged"
    assert report.cells(lora)["served"] == "as it is"


def test_the_report_says_the_same_in_all_its_forms(tmp_path: Path) -> None:
    measured = [
        Measured(BASE, 7, "r0", "", {"accuracy": 0.48}, (0.44, 0.52)),
        Measured("lora", 7, "r1", "", NUMBERS, (0.56, 0.64)),
        Measured("boft", 7, "r2", "train: <none> | left"),
    ]
    report.write(tmp_path, BUDGET, [7], measured, known(), {"machine": "a <small> one"})
    assert {p.name for p in tmp_path.iterdir()} == {
        *(f"report.{kind}" for kind in ("json", "md", "html")),
        "quality-memory.svg",
        "quality-time.svg",
    }
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["measured"][1]["numbers"] == NUMBERS
    assert record["techniques"]["lora"]["tuner"] == {"kind": "lora", "lora_rank": 16}
    text = (tmp_path / "report.md").read_text()
    assert "| LoRA, all linear layers | 4.900 M | 0.001 | 1.5 GB | 1 min 40 s |" in text
    assert "BOFT (seed 7) failed: train: <none> | left" in text
    page = (tmp_path / "report.html").read_text()
    assert "a &lt;small&gt; one" in page
    assert "&lt;none&gt;" in page
    assert "<none>" not in page
    assert page.count("<svg") == 2
    report.write(tmp_path, replace(BUDGET, steps=11), [7], measured[:1], known(), {})
    assert "11 steps" in (tmp_path / "report.md").read_text()


def test_the_command_refuses_what_makes_no_sense(martlet: Callable[..., Any], gateway: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    for more, told in (
        (["--steps", "0"], "--steps: must be at least 1"),
        (["--learning-rate", "0"], "--learning-rate: must be above 0"),
        (["--techniques", "lorra"], "'lorra' isn't one of"),
    ):
        ran = martlet("bench", "techniques", "--train", str(rows), "--test", str(rows), *more)
        assert ran.code == 2
        assert told in " ".join(ran.err.split())
    assert gateway.requests == []
