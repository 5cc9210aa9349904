"""What ``martlet quantize`` and ``martlet evaluate`` ask the gateway for, and what they print."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ID = "0123456789abcdefghjk"
QUANTIZATION = {
    "id": ID,
    "name": f"quantizationJobs/{ID}",
    "state": "QUEUED",
    "spec": {"model": "m", "method": "bnb-nf4"},
    "progress": {"queue_position": 2},
    "create_time": "2026-01-02T03:04:05Z",
}
QUANTIZED = {
    **QUANTIZATION,
    "state": "SUCCEEDED",
    "progress": {},
    "result": {
        "quantized_model": "ft:m:acme:bnb-nf4:2",
        "method": "bnb-nf4",
        "size_bytes": 113_000_000,
        "base_size_bytes": 269_000_000,
        "size_ratio": 0.42,
        "bits_per_weight": 6.72,
        "perplexity": 12.18,
        "base_perplexity": 9.72,
        "perplexity_ratio": 1.253,
        "top1_agreement": 0.81,
        "quantize_seconds": 4.8,
        "peak_memory_bytes": 870_000_000,
        "engines": [
            {"engine": "transformers", "loaded": True, "detail": "5.19.0", "seconds": 2.5},
            {"engine": "vllm", "loaded": False, "detail": "it broke", "seconds": 31.0},
            {"engine": "inference replica", "loaded": False, "detail": "not tried: the job said no", "seconds": 0.0},
        ],
    },
}
EVALUATION = {
    "id": ID,
    "name": f"evaluationJobs/{ID}",
    "state": "RUNNING",
    "spec": {"targets": [{"model": "m"}, {"model": "ft:m"}], "suites": [{"suite": "classification"}]},
    "progress": {"phase": "asking m", "step": 10, "total_steps": 600},
}
EVALUATED = {
    **EVALUATION,
    "state": "SUCCEEDED",
    "result": {
        "report_artifact": "artifacts/r1",
        "targets": [
            {"name": "m", "model": "m", "metrics": {"classification.accuracy": {"value": 0.48, "low": 0.44, "high": 0.52}}},
            {"name": "ft:m", "model": "ft:m", "metrics": {"classification.accuracy": {"value": 0.683}}},
        ],
        "comparisons": [
            {
                "target": "ft:m",
                "baseline": "m",
                "metric": "classification.accuracy",
                "difference": 0.203,
                "low": 0.168,
                "high": 0.238,
                "p_value": 1e-9,
                "flips_gained": 150,
                "flips_lost": 28,
            }
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "method"),
    [
        (["m", "--method", "w8a8-int8"], "w8a8-int8"),
        (["create", "m", "--method", "gguf"], "gguf"),
        (["--model", "m", "--quant_method", "awq"], "awq"),
        (["--model", "m", "--quant_method", "bnb", "--quant_bits", "8"], "bnb-int8"),
    ],
)
def test_a_quantization_is_made_by_our_names_and_by_swifts(
    gateway: Any, martlet: Callable[..., Any], argv: list[str], method: str
) -> None:
    gateway.answers = {"POST /v1/martlet/quantization/jobs": QUANTIZATION}
    done = martlet("quantize", *argv, "--dataset", "file-rows1", "--quant_n_samples", "32", "--group_size", "64")
    assert (done.code, done.out) == (0, f"{ID}: queued, place 2\n")
    [body] = gateway.bodies("/v1/martlet/quantization/jobs")
    calibration = {"dataset": "artifacts/rows1", "max_rows": 32}
    assert body == {"spec": {"model": "m", "method": method, "calibration": calibration, "options": {"group_size": 64}}}


@pytest.mark.parametrize(("flag", "said"), [("--check-serving", True), ("--no-check-serving", False)])
def test_a_quantization_says_whether_a_replica_is_asked(
    gateway: Any, martlet: Callable[..., Any], flag: str, said: bool
) -> None:
    gateway.answers = {"POST /v1/martlet/quantization/jobs": QUANTIZATION}
    assert martlet("quantize", "m", "--method", "bnb-nf4", flag).code == 0
    [body] = gateway.bodies("/v1/martlet/quantization/jobs")
    assert body == {"spec": {"model": "m", "method": "bnb-nf4", "check_serving": said}}


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["m"], "--method: is required"),
        (["--method", "gguf"], "MODEL: is required"),
        (["m", "--method", "gguf", "--quant_method", "awq"], "can't be used together"),
        (["m", "--quant_method", "awq", "--quant_bits", "8"], "--quant_method awq has: 4"),
        (["m", "--methd", "gguf"], "did you mean --method"),
        (["m", "--method", "gguf", "--dataset", "no/such.jsonl"], "there is no such file"),
    ],
)
def test_wrong_quantizations_are_refused(gateway: Any, martlet: Callable[..., Any], argv: list[str], told: str) -> None:
    done = martlet("quantize", *argv)
    assert done.code == 2
    assert told in done.err
    assert not gateway.bodies("/v1/martlet/quantization/jobs")


def test_a_quantization_is_followed_to_its_table(
    gateway: Any, martlet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("martlet_cli.stage_jobs.POLL_SECONDS", 0)
    gateway.answers = {
        "POST /v1/martlet/quantization/jobs": QUANTIZATION,
        f"GET /v1/martlet/quantization/jobs/{ID}": [QUANTIZATION, QUANTIZED],
    }
    done = martlet("quantize", "m", "--method", "bnb-nf4", "--watch")
    assert done.code == 0, done.err
    assert "ft:m:acme:bnb-nf4:2 (0.42 of the size, perplexity x 1.253)" in done.out
    assert "bnb-nf4\t113.0 MB\t12.18\t81.0%" in done.out
    assert "transformers\tok\t2.5\t5.19.0" in done.out
    assert "vllm\tfailed\t31\tit broke" in done.out
    assert "inference replica\tnot tried\t0\tnot tried: the job said no" in done.out


def test_quantizations_are_paused_and_listed(gateway: Any, martlet: Callable[..., Any]) -> None:
    gateway.answers = {
        f"POST /v1/martlet/quantization/jobs/{ID}/pause": {**QUANTIZATION, "state": "PAUSED"},
        "GET /v1/martlet/quantization/jobs": {"data": [QUANTIZED], "has_more": False},
    }
    assert martlet("quantize", "pause", QUANTIZATION["name"]).out == f"{ID}: paused\n"
    listed = martlet("quantize", "list").out.splitlines()
    assert listed[1].split("\t")[:5] == [ID, "SUCCEEDED", "m", "bnb-nf4", "ft:m:acme:bnb-nf4:2"]


def test_an_evaluation_is_made_and_shown(gateway: Any, martlet: Callable[..., Any]) -> None:
    gateway.answers = {
        "POST /v1/martlet/evaluation/jobs": EVALUATION,
        f"GET /v1/martlet/evaluation/jobs/{ID}": EVALUATED,
    }
    argv = ["m", "ft:m", "--eval_dataset", "file-rows1", "--suite", "classification", "--eval_limit", "600"]
    done = martlet("evaluate", *argv, "--options", '{"labels": ["yes", "no"]}')
    assert (done.code, done.out) == (0, f"{ID}: running, asking m 10/600\n")
    [body] = gateway.bodies("/v1/martlet/evaluation/jobs")
    assert body["spec"] == {
        "targets": [{"model": "m"}, {"model": "ft:m"}],
        "dataset": "artifacts/rows1",
        "suites": [{"suite": "classification", "options": {"labels": ["yes", "no"]}}],
        "max_rows": 600,
    }
    shown = martlet("evaluate", "show", ID).out
    assert "classification.accuracy\t0.48 (0.44 to 0.52)\t0.683" in shown
    assert "ft:m - m\tclassification.accuracy\t+0.203 (+0.168 to +0.238)\t1e-09\t150\t28" in shown


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "MODEL: is required"),
        (["m", "--options", "{"], "--options: is not valid JSON"),
        (["m", "--options", "[]"], "--options: must be a JSON object"),
        (["m", "--suite", "latency", "generation", "--options", "{}"], "belongs to one suite"),
    ],
)
def test_wrong_evaluations_are_refused(gateway: Any, martlet: Callable[..., Any], argv: list[str], told: str) -> None:
    done = martlet("evaluate", "create", *argv)
    assert done.code == 2
    assert told in done.err


def test_a_report_is_fetched(gateway: Any, martlet: Callable[..., Any], tmp_path: Path) -> None:
    page = b'"a page"'  # the double answers in JSON
    file = {"path": "report.html", "size_bytes": len(page), "sha256": hashlib.sha256(page).hexdigest()}
    gateway.answers = {
        f"GET /v1/martlet/evaluation/jobs/{ID}": [EVALUATION, EVALUATED],
        "GET /v1/martlet/artifacts/r1": {"id": "r1", "files": [file]},
        "GET /v1/martlet/artifacts/r1/files/report.html": "a page",
    }
    early = martlet("evaluate", "report", ID, "--out", str(tmp_path / "early"))
    assert early.code == 1
    assert "is running and has no report yet" in early.err
    done = martlet("evaluate", "report", ID, "--out", str(tmp_path / "report"))
    assert done.code == 0, done.err
    assert Path(done.out.strip()).read_bytes() == page


def test_a_quantizations_report_is_found_by_its_bare_id(
    gateway: Any, martlet: Callable[..., Any], tmp_path: Path
) -> None:
    page = b'"a page"'
    file = {"path": "report.md", "size_bytes": len(page), "sha256": hashlib.sha256(page).hexdigest()}
    result = {**QUANTIZED["result"], "report_artifact": "artifacts/r1"}
    gateway.answers = {
        f"GET /v1/martlet/quantization/jobs/{ID}": {**QUANTIZED, "result": result},
        "GET /v1/martlet/artifacts/r1": {"id": "r1", "files": [file]},
        "GET /v1/martlet/artifacts/r1/files/report.md": "a page",
    }
    done = martlet("report", "open", ID, "--out", str(tmp_path / "report"))
    assert done.code == 0, done.err
    assert Path(done.out.strip()) == tmp_path / "report" / "report.md"
    assert martlet("report", "open", f"evaluationJobs/{ID}").code == 1, (
        "the kind that was named is the one that is asked"
    )
    wrong = martlet("report", "open", f"fineTuningJobs/{ID}")
    assert wrong.code == 1
    assert "is no job of evaluation or quantization" in wrong.err
