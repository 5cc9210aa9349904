"""What ``martlet run``, ``alias`` and ``lineage`` print, and what they ask the gateway for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from martlet_cli.commands.lineage import tree
from martlet_cli.run_view import line, picture
from rich.console import Console

START = "2026-11-20T10:00:00Z"
NOW = 1795168805.0


def step(id: str, kind: str, state: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "kind": kind, "state": state, **more}


def run(state: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"id": "r1", "display_name": "chain", "state": state, "steps": list(steps), "create_time": START}


TRAINED = step(
    "train", "train", "SUCCEEDED", start_time=START, end_time="2026-11-20T10:02:05Z", summary="valid_loss 0.4"
)


def drawn(value: Any) -> str:
    console = Console(width=100, force_terminal=False, highlight=False)
    with console.capture() as captured:
        console.print(value)
    return captured.get()


@pytest.fixture
def definition(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("name: x\nsteps:\n  m: {kind: mrge}\n")
    return path


def test_submit_sends_the_file_and_its_inputs(gateway: Any, martlet: Callable[..., Any], definition: Path) -> None:
    gateway.answers["POST /v1/martlet/runs"] = run("QUEUED")
    ran = martlet("run", "submit", str(definition), "--input", "a=1", "--input", "b=x=y", "--reuse")
    assert (ran.code, ran.out) == (0, "r1: queued\n")
    body = gateway.bodies("/v1/martlet/runs")[0]
    assert (body["source"], body["inputs"], body["reuse"]) == (definition.read_text(), {"a": "1", "b": "x=y"}, True)
    assert martlet("run", "submit", str(definition), "--input", "a").code == 2
    assert martlet("run", "submit", "nowhere.yaml").code == 2


def test_a_file_given_to_an_input_is_uploaded(gateway: Any, martlet: Callable[..., Any], definition: Path) -> None:
    rows = definition.with_name("rows.jsonl")
    rows.write_text("{}\n")
    gateway.answers["POST /v1/files"] = {
        "id": "file-abc", "object": "file", "bytes": 3, "created_at": 1, "filename": "rows.jsonl",
        "purpose": "fine-tune", "status": "processed",
    }  # fmt: skip
    gateway.answers["POST /v1/martlet/runs"] = run("QUEUED")
    assert martlet("run", "submit", str(definition), "--input", f"data=@{rows}").code == 0
    assert gateway.bodies("/v1/martlet/runs")[0]["inputs"] == {"data": "artifacts/abc"}


def test_watching_prints_a_line_a_change_and_says_how_it_ended(
    gateway: Any, martlet: Callable[..., Any], definition: Path
) -> None:
    gate = step("gate", "gate", "FAILED", error={"message": "fails by 0.08"})
    failed = run("FAILED", TRAINED, gate, step("deploy", "deploy", "SKIPPED", note="step gate failed"))
    gateway.answers["POST /v1/martlet/runs"] = run("QUEUED")
    gateway.answers["GET /v1/martlet/runs/r1"] = [
        run("RUNNING", step("train", "train", "RUNNING", start_time=START), step("gate", "gate", "WAITING")),
        failed | {"error": {"message": "Step gate: fails by 0.08"}},
    ]
    ran = martlet("run", "submit", str(definition), "--watch")
    assert ran.code == 1
    assert ran.out.splitlines() == [
        "train: running",
        "r1: running",
        "train: succeeded, valid_loss 0.4, 2 min 05 s",
        "gate: failed, fails by 0.08",
        "deploy: skipped, step gate failed",
        "r1: failed",
    ]
    assert "martlet run resume r1" in ran.err


def test_mistakes_are_shown_in_their_lines(
    gateway: Any, martlet: Callable[..., Any], definition: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "line 3, column 13: `mrge` is no kind of step. Did you mean `merge`? (steps.m.kind)"

    def refuse(request: Any) -> tuple[int, Any]:
        gateway.requests.append(request)
        return 400, {"error": {"message": text, "type": "x", "param": "steps.m.kind", "code": "invalid_run"}}

    monkeypatch.setattr(gateway, "answer", refuse)
    ran = martlet("run", "validate", str(definition))
    assert ran.code == 2
    assert (
        "   3 │   m: {kind: mrge}\n     │             ^ `mrge` is no kind of step. Did you mean `merge`?\n" in ran.err
    )
    assert f"{definition}: 1 mistake\n" in ran.err
    assert gateway.bodies("/v1/martlet/runs")[0]["validate_only"]
    assert martlet("run", "validate", str(definition), "--json").json["error"]["reason"] == "INVALID_RUN"


def test_list_show_and_steer(gateway: Any, martlet: Callable[..., Any]) -> None:
    shown = run("RUNNING", TRAINED | {"outputs": {"model": "ft:x"}}, step("merge", "merge", "RUNNING"))
    gateway.answers["GET /v1/martlet/runs"] = {"data": [shown]}
    gateway.answers["GET /v1/martlet/runs/r1"] = shown
    event = {"create_time": START, "message": "train: succeeded"}
    gateway.answers["GET /v1/martlet/runs/r1/events"] = {"data": [event]}
    gateway.answers["POST /v1/martlet/runs/r1/pause"] = shown | {"state": "PAUSING"}
    assert "r1\tchain\tRUNNING\t1/2\tmerge" in martlet("run", "list").out
    out = martlet("run", "show", "runs/r1").out
    assert "train: succeeded, valid_loss 0.4" in out
    assert "train\tmodel\tft:x" in out
    assert martlet("run", "pause", "r1").out == "r1: pausing\n"


def test_the_picture_of_a_run() -> None:
    progress = {"step": 12, "total_steps": 30, "fraction": 0.4, "metrics": {"loss": 0.31}, "eta_seconds": 42}
    out = drawn(
        picture(
            run(
                "RUNNING",
                TRAINED,
                step("nf4", "quantize", "RUNNING", start_time=START, progress=progress),
                step("int8", "quantize", "QUEUED", start_time=START, progress={"queue_position": 2}),
                step("awq", "quantize", "QUEUED", start_time=START, progress={"queued_reason": "waiting for a GPU"}),
                step("gate", "gate", "WAITING", needs=["nf4", "int8"]),
                step("late", "merge", "WAITING", note="waits: [no] answer"),
                step("old", "merge", "SUCCEEDED", reused=True),
            ),
            now=NOW,
        )
    )
    assert "chain  r1  running  2/7 steps" in out
    for words in (
        "12/30, loss 0.31, 42.0 s left",
        "place 2 in the queue",
        "waiting for a GPU",
        "after nf4, int8",
        "waits: [no] answer",
        "reused",
    ):
        assert words in out
    assert line(step("gate", "gate", "WAITING")) == "gate: waiting"


def test_aliases(gateway: Any, martlet: Callable[..., Any]) -> None:
    alias = {
        "id": "news",
        "model": "ft:a",
        "moves": [{"model": "ft:a", "reason": "put", "move_time": START, "run": ""}],
    }
    gateway.answers |= {
        "PUT /v1/martlet/aliases/news": alias,
        "GET /v1/martlet/aliases": {"data": [alias]},
        "GET /v1/martlet/aliases/news": alias,
        "POST /v1/martlet/aliases/news/rollback": alias | {"model": "ft:b"},
        "DELETE /v1/martlet/aliases/news": {"id": "news", "deleted": True},
    }
    assert martlet("alias", "set", "news", "ft:a").out == "news -> ft:a\n"
    assert "news\tft:a" in martlet("alias", "list").out
    assert "ft:a\tput" in martlet("alias", "show", "news").out
    assert martlet("alias", "rollback", "news").out == "news -> ft:b\n"
    assert martlet("alias", "delete", "news").out == "news: deleted\n"


def test_a_lineage_is_a_tree(gateway: Any, martlet: Callable[..., Any], tmp_path: Path) -> None:
    rows = {
        "name": "artifacts/d",
        "kind": "dataset",
        "role": "training_dataset",
        "sha256": "ab" * 32,
        "size_bytes": 2_000,
        "parents": [],
    }
    job = {
        "kind": "training",
        "id": "j1",
        "seconds": 61.0,
        "run": "runs/r",
        "step": "train",
        "spec": {},
        "metrics": {"loss": 0.25},
    }
    top = {
        "name": "ft:a", "kind": "adapter", "role": "", "job": job, "parents": [rows],
        "made_by": {"code_version": "c0ffee"}, "create_time": 1.0,
        "evaluations": [{"job": "evaluationJobs/e", "metrics": {"accuracy": {"value": 0.9}}}],
    }  # fmt: skip
    out = drawn(tree(top))
    assert "made by training job j1  1 min 01 s  runs/r, step train  loss 0.25" in out
    assert "training_dataset: artifacts/d  dataset  2.0 kB  sha256 abababababab" in out
    assert "with code version c0ffee" in out
    assert "evaluated by evaluationJobs/e  accuracy 0.9" in out
    gateway.answers["GET /v1/martlet/lineage/ft:a"] = top
    assert martlet("lineage", "ft:a").out.startswith("ft:a  adapter")
    assert martlet("lineage", "ft:a", "--json").json["job"]["id"] == "j1"
    card = tmp_path / "README.md"
    assert martlet("lineage", "ft:a", "--out", str(card)).code == 0
    assert card.exists()
    assert gateway.requests[-1].path == "/v1/martlet/lineage/ft:a?form=card"
