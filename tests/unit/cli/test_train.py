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


def test_a_file_too_large_for_one_request_goes_in_parts(
    gateway: Any, martlet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("martlet_cli.commands.files.LARGEST_WHOLE_BYTES", 4)
    monkeypatch.setattr("martlet_cli.commands.files.PART_BYTES", 4)
    path = tmp_path / "rows.jsonl"
    path.write_text("0123456789")
    upload = {"id": "upload_1", "object": "upload", "bytes": 10, "created_at": 1, "expires_at": 2, "status": "pending"}
    upload |= {"filename": "rows.jsonl", "purpose": "fine-tune"}
    numbers = iter(range(3))
    gateway.answers = {
        "POST /v1/uploads": upload,
        "POST /v1/uploads/upload_1/parts": lambda _: {
            "id": f"part_{next(numbers)}", "object": "upload.part", "created_at": 1, "upload_id": "upload_1"
        },
        "POST /v1/uploads/upload_1/complete": {**upload, "status": "completed", "file": FILE},
    }  # fmt: skip
    done = martlet("files", "upload", str(path), "--json")
    assert (done.code, done.json[0]["id"]) == (0, "file-1"), done.err
    sent = gateway.bodies("/v1/uploads/upload_1/parts")
    assert [chunk for chunk in (b"0123", b"4567", b"89") if not any(chunk in body for body in sent)] == []
    assert gateway.bodies("/v1/uploads/upload_1/complete") == [{"part_ids": ["part_0", "part_1", "part_2"]}]


def test_several_data_sets_are_swifts_dataset_arguments(gateway: Any, martlet: Callable[..., Any], rows: str) -> None:
    gateway.answers = {"POST /v1/files": FILE, "POST /v1/fine_tuning/jobs": JOB}
    of_hub = "org/rows@v1#20"
    named = ("--dataset", f"{rows}#500", of_hub, "file-9")
    assert martlet("train", "--model", "org/base@v1", *named, "--use_hf", "false", "--json").code == 0
    body = gateway.bodies("/v1/fine_tuning/jobs")[0]
    assert (body["model"], body["training_file"]) == ("ms:org/base@v1", "file-1")
    assert body["martlet"]["training_datasets"] == [
        {"dataset": "file-1", "name": "rows.jsonl", "count": 500},
        {"dataset": "ms:org/rows@v1", "name": "rows@v1", "count": 20},
        {"dataset": "file-9", "name": "file-9"},
    ]
