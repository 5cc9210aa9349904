"""What ``martlet jobs show`` and ``martlet merge`` print, and what they ask the gateway for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

JOB = {
    "id": "ftjob-1",
    "object": "fine_tuning.job",
    "created_at": 1,
    "finished_at": 11,
    "model": "m",
    "status": "succeeded",
    "organization_id": "acme",
    "result_files": ["file-2"],
    "seed": 1,
    "training_file": "file-1",
    "hyperparameters": {"n_epochs": 3, "batch_size": "auto"},
    "fine_tuned_model": "ft:m:acme::1",
    "martlet": {
        "recipe": "sft",
        "tuner": {"kind": "lora", "lora_rank": 16},
        "device": "NVIDIA H200 x 2",
        "progress": {"step": 4, "total_steps": 4},
    },
}
REPORT = {
    "rows_read": 5,
    "rows_used": 4,
    "rows_truncated": 1,
    "rows_refused": 1,
    "tokens": 321,
    "loss_tokens": 45,
    "format": "messages",
    "issues": [{"line": 3, "field": "messages[1]", "message": "is [empty]", "refused": True}],
}
RESOLVED = {
    "base_model": "m",
    "tuner": {"lora_rank": 16.0, "lora_alpha": 32.0},
    "hyperparameters": {"learning_rate": 2e-4},
}
EMPTY = {"object": "list", "data": [], "has_more": False}
MERGE = {
    "id": "0123456789abcdefghjk",
    "name": "mergeJobs/0123456789abcdefghjk",
    "state": "QUEUED",
    "spec": {"adapter": "ft:x", "precision": "float32"},
    "create_time": "2026-11-20T10:00:00Z",
    "progress": {"phase": ""},
}
MERGED = {**MERGE, "state": "SUCCEEDED", "result": {"merged_model": "ft:m:acme::2", "mean_logprob_difference": 0.00123}}
ID = MERGE["id"]


def shown(gateway: Any, martlet: Callable[..., Any], job: dict[str, Any]) -> dict[str, str]:
    """The lines that ``jobs show`` prints, by their first word (whole lines where it repeats)."""
    url = f"GET /v1/fine_tuning/jobs/{job['id']}"
    gateway.answers = {url: job, f"{url}/events": EMPTY, f"{url}/checkpoints": EMPTY}
    done = martlet("jobs", "show", job["id"])
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if line.strip()]
    return {line: line for line in lines} | {line.split()[0]: line for line in lines}


def test_show_has_settings_and_data_report(gateway: Any, martlet: Callable[..., Any]) -> None:
    result = {"resolved_config": RESOLVED, "training_data": REPORT}
    lines = shown(gateway, martlet, {**JOB, "martlet": {**JOB["martlet"], "result": result}})
    assert lines["device"].endswith("NVIDIA H200 x 2")
    assert lines["tuner.lora_rank"].endswith(" 16")
    assert lines["hyperparameters.learning_rate"].endswith(" 0.0002")
    assert "training\tmessages\t5\t4\t1\t1\t321\t45" in lines.values()
    assert "training line 3: messages[1]: is [empty]" in lines.values()


def test_show_of_a_job_that_waits_has_what_was_asked_for(gateway: Any, martlet: Callable[..., Any]) -> None:
    waiting = {**JOB, "status": "queued", "finished_at": None, "fine_tuned_model": None}
    lines = shown(gateway, martlet, waiting)
    assert lines["tuner.kind"].endswith("lora")
    assert lines["hyperparameters.n_epochs"].endswith(" 3")
    assert "data" not in lines


@pytest.mark.parametrize("argv", [["merge", "create", "ft:x"], ["merge", "ft:x"]])
def test_merge_is_made(gateway: Any, martlet: Callable[..., Any], argv: list[str]) -> None:
    gateway.answers = {"POST /v1/martlet/merge/jobs": MERGE}
    done = martlet(*argv, "--precision", "float32", "--json")
    assert (done.code, done.json["id"]) == (0, ID)
    assert gateway.bodies("/v1/martlet/merge/jobs") == [{"spec": {"adapter": "ft:x", "precision": "float32"}}]


@pytest.mark.parametrize(
    ("end", "code"), [(MERGED, 0), ({**MERGE, "state": "FAILED", "error": {"message": "differs"}}, 1)]
)
def test_merge_is_followed(
    gateway: Any, martlet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, end: dict[str, Any], code: int
) -> None:
    monkeypatch.setattr("martlet_cli.stage_jobs.POLL_SECONDS", 0)
    running = {**MERGE, "state": "RUNNING", "progress": {"phase": "merging"}}
    gateway.answers = {
        "POST /v1/martlet/merge/jobs": MERGE,
        f"GET /v1/martlet/merge/jobs/{ID}": [MERGE, running, running, end],
    }
    done = martlet("merge", "ft:x", "--watch")
    lines = done.out.splitlines()
    assert done.code == code
    assert lines[:2] == [f"{ID}: queued", f"{ID}: running, merging"]
    assert ("ft:m:acme::2 (mean difference 0.00123 nats)" if code == 0 else "failed, differs") in lines[2]


def test_merges_are_listed_shown_and_cancelled(gateway: Any, martlet: Callable[..., Any]) -> None:
    gateway.answers = {
        "GET /v1/martlet/merge/jobs": {**EMPTY, "data": [MERGED]},
        f"GET /v1/martlet/merge/jobs/{ID}": MERGED,
        f"POST /v1/martlet/merge/jobs/{ID}/cancel": {**MERGE, "state": "CANCELLED"},
    }
    listed = martlet("merge", "list").out.splitlines()
    assert listed[0].split("\t")[:4] == ["id", "state", "adapter", "merged_model"]
    assert listed[1].split("\t")[:4] == [ID, "SUCCEEDED", "ft:x", "ft:m:acme::2"]
    assert "float32" in martlet("merge", "show", MERGE["name"]).out
    assert martlet("merge", "cancel", ID).out == f"{ID}: cancelled\n"
    assert martlet("merge", "watch", ID, "--json").json["state"] == "SUCCEEDED"
