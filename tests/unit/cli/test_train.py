"""``martlet train`` up to the request that it makes: files are uploaded, bad rows stop it or are left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FILE = {
    "id": "file-1",
    "object": "file",
    "bytes": 1,
    "created_at": 1,
    "filename": "rows.jsonl",
    "purpose": "fine-tune",
    "status": "processed",
}
BAD_FILE = {**FILE, "status": "error", "status_details": "1 of 2 rows can't be read: line 2: [oops]"}
JOB = {
    "id": "ftjob-1",
    "object": "fine_tuning.job",
    "created_at": 1,
    "model": "m",
    "status": "queued",
    "organization_id": "acme",
    "result_files": [],
    "seed": 1,
    "training_file": "file-1",
    "hyperparameters": {},
}


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    return str(path)


def test_bad_rows_stop_it_before_a_job_is_made(gateway: Any, martlet: Callable[..., Any], rows: str) -> None:
    gateway.answers = {"POST /v1/files": BAD_FILE, "POST /v1/fine_tuning/jobs": JOB}
    done = martlet("train", "--model", "m", "--dataset", rows, "--json")
    assert done.code == 2
    assert "line 2" in done.json["error"]["message"]
    assert not gateway.bodies("/v1/fine_tuning/jobs")


def test_bad_rows_are_left_out_on_request(gateway: Any, martlet: Callable[..., Any], rows: str) -> None:
    gateway.answers = {"POST /v1/files": BAD_FILE, "POST /v1/fine_tuning/jobs": JOB}
    done = martlet("train", "--model", "m", "--dataset", rows, "--val_dataset", rows, "--strict", "false", "--json")
    assert (done.code, done.json["id"]) == (0, "ftjob-1")
    assert "line 2: [oops]" in done.err, "what is left out is said"
    body = gateway.bodies("/v1/fine_tuning/jobs")[0]
    assert body["martlet"] == {"data": {"on_bad_rows": "SKIP"}}
    assert (body["training_file"], body["validation_file"]) == ("file-1", "file-1")


def test_what_the_gateway_refuses_keeps_its_reason(gateway: Any, martlet: Callable[..., Any]) -> None:
    error = martlet("train", "--model", "m", "--dataset", "file-1", "--json").json["error"]
    assert (error["code"], error["reason"]) == ("NOT_FOUND", "NOT_FOUND")
