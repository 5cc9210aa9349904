"""Quantization jobs through the real quantizer, from ``Create`` to a model that was read back and measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from martlet.common.v1 import job_pb2
from martlet.quantizer.v1 import quantization_job_pb2 as messages
from martlet_core.errors import MartletError, NotFound
from martlet_core.rpc.client import error_from_rpc

Quantizer = Any  # the fixture's class; conftest modules can't be imported
TENANT = "acme"


def refusal(call: Callable[[], Any]) -> MartletError:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_from_rpc(caught.value)


def rows(count: int, start: int = 0) -> str:
    lines = []
    for number in range(start, start + count):
        turns = [
            {"role": "user", "content": f"What follows {number}?"},
            {"role": "assistant", "content": f"{number + 1}"},
        ]
        lines.append(json.dumps({"messages": turns}) + "\n")
    return "".join(lines)


@pytest.fixture(scope="module")
def small(quantizer: Quantizer) -> str:
    """A few rows to measure on, so that jobs are short."""
    return quantizer.upload(rows(20))


@pytest.fixture(scope="module")
def finished(quantizer: Quantizer, small: str) -> Any:
    """Quantized once for all tests of this module: the job and its events."""
    created = quantizer.create(evaluation_dataset=small, suffix="small")
    events = quantizer.watch(created.name)
    job = quantizer.ask("Get", created.name)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, f"{job.error}{quantizer.logs()}"
    return job, events


def test_a_job_ends_with_a_model_that_was_measured(quantizer: Quantizer, finished: Any) -> None:
    job, events = finished
    result = job.result
    assert result.quantized_model == f"ft:tiny-llama:{TENANT}:small:{job.name[-8:]}"
    assert result.method == "bnb-nf4"
    assert 0 < result.size_ratio < 0.75
    assert 2 < result.bits_per_weight < 16
    assert 0.9 < result.perplexity_ratio < 1.35
    assert result.positions > 500
    assert result.peak_memory_bytes > 1e8
    read, served = result.engines
    assert (read.engine, read.loaded) == ("transformers", True)
    assert (served.loaded, served.detail) == (False, "not tried: this worker knows no gateway (MARTLET_GATEWAY_URL)")
    assert any(event.message.startswith("Perplexity ") for event in events), "the verdict was not told"


def test_the_model_is_published_and_the_report_is_complete(quantizer: Quantizer, finished: Any) -> None:
    job, _ = finished
    model = quantizer.stores.models.get(job.result.quantized_model, tenant=TENANT)
    assert (model.kind, f"artifacts/{model.artifact_id}") == ("whole", job.result.model_artifact)
    files = {path.name for path in quantizer.download(job.result.model_artifact).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= files
    report: Path = quantizer.download(job.result.report_artifact)
    facts = json.loads((report / "report.json").read_text())
    assert facts["details"]["evaluation_rows"] == 20
    assert facts["result"]["perplexity_ratio"] == pytest.approx(job.result.perplexity_ratio)
    page = (report / "report.md").read_text()
    assert "quantized by bnb-nf4" in page
    assert "tried behind this report" in page


def test_a_model_worse_than_allowed_fails_with_its_report(quantizer: Quantizer) -> None:
    created = quantizer.create(
        max_perplexity_ratio=1.0000001
    )  # on the built-in texts, whose like the model has learned
    quantizer.watch(created.name)
    job = quantizer.ask("Get", created.name)
    assert job.state == job_pb2.JOB_STATE_FAILED, f"nf4 lost nothing: {job.result}"
    assert "more than max_perplexity_ratio" in job.error.message
    assert job.attempt == 1, "another attempt would give the same"
    assert job.result.perplexity_ratio > 1
    assert not job.result.model_artifact
    report = quantizer.download(job.result.report_artifact)
    assert job.error.message in (report / "report.md").read_text()
    with pytest.raises(NotFound):
        quantizer.stores.models.get(f"ft:tiny-llama:{TENANT}:bnb-nf4:{job.name[-8:]}", tenant=TENANT)


def test_a_cancelled_job_stops_in_the_middle_of_its_work(quantizer: Quantizer) -> None:
    job = quantizer.create()
    quantizer.wait_until(quantizer.steps, "a step")
    quantizer.ask("Cancel", job.name)
    events = quantizer.watch(job.name)
    assert events[-1].state_change.to_state == job_pb2.JOB_STATE_CANCELLED
    quantizer.wait_until(lambda: not quantizer.steps(), "the end of the step's process")


def test_a_killed_worker_costs_an_attempt_and_nothing_else(quantizer: Quantizer, small: str) -> None:
    job = quantizer.create(evaluation_dataset=small)
    quantizer.wait_until(quantizer.steps, "a step")
    quantizer.worker.kill()
    quantizer.worker.wait()
    quantizer.wait_until(lambda: not quantizer.steps(), "the end of what the dead worker had started")
    quantizer.worker = quantizer.start_worker()
    quantizer.watch(job.name)
    done = quantizer.ask("Get", job.name)
    assert done.state == job_pb2.JOB_STATE_SUCCEEDED, f"{done.error}{quantizer.logs()}"
    assert done.attempt == 2
    assert quantizer.stores.models.get(done.result.quantized_model, tenant=TENANT)


def test_what_cannot_work_is_refused_at_once(quantizer: Quantizer, finished: Any, small: str) -> None:
    job, _ = finished
    few = messages.CalibrationSpec(dataset=quantizer.upload(rows(15)))
    overlapping = messages.CalibrationSpec(dataset=quantizer.upload(rows(30, start=19)))
    broken = messages.CalibrationSpec(dataset=quantizer.upload(rows(20) + '{"messages": []}\n'))
    foreign = quantizer.upload(rows(20), tenant="umbrella")
    for spec, code, reason, words in (
        (
            {"model": job.result.quantized_model},
            "FAILED_PRECONDITION",
            "BASE_IS_QUANTIZED",
            "quantized by bitsandbytes",
        ),
        ({"method": "bnb-nf"}, "NOT_FOUND", "METHOD_NOT_FOUND", "did you mean bnb-nf4"),
        ({"method": "w4a16", "calibration": few}, "INVALID_ARGUMENT", "TOO_FEW_CALIBRATION_ROWS", "has 15 rows"),
        (
            {"method": "w4a16", "calibration": overlapping, "evaluation_dataset": small},
            "INVALID_ARGUMENT",
            "CALIBRATION_OVERLAPS_EVALUATION",
            "shares 1 of its 20 rows",
        ),
        ({"method": "w4a16", "calibration": broken}, "INVALID_ARGUMENT", "BAD_ROWS", "line 21"),
        ({"evaluation_dataset": foreign}, "NOT_FOUND", "ARTIFACT_NOT_FOUND", "spec.evaluation_dataset"),
    ):
        error = refusal(lambda spec=spec: quantizer.create(**spec))
        assert (error.code, error.reason) == (code, reason), error.message
        assert words in error.message
