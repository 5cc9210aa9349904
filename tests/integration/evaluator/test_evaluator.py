"""Evaluation jobs through the real evaluator, from ``Create`` to a report, against an echo replica behind a real gateway."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from martlet.common.v1 import job_pb2
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import MartletError
from martlet_core.rpc.client import call_metadata, error_from_rpc
from martlet_core.testing.conformance import EVALUATOR_CHECKS, EvaluatorTarget, assert_check, check_name

Evaluator = Any  # the fixture's class; conftest modules can't be imported
BASE = "echo-base"
ROWS = [
    {"prompt": word, "completion": word, "kind": kind}
    for word, kind in (("oak", "tree"), ("elm", "tree"), ("rose", "flower"))
]


def spec(dataset: str, **changes: Any) -> dict[str, Any]:
    """The echo engine's answer of one token is the question's first word."""
    return {
        "targets": [{"name": "base", "model": BASE}],
        "dataset": dataset,
        "suites": [{"suite": "exact_match"}],
        "sampling": {"max_tokens": 1},
        **changes,
    }


def refusal(call: Callable[[], Any]) -> MartletError:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_from_rpc(caught.value)


def test_a_job_ends_with_a_report_and_records(evaluator: Evaluator) -> None:
    made = evaluator.create(
        spec(
            evaluator.upload(ROWS * 4),
            targets=[{"name": "one", "model": BASE}, {"name": "two", "model": BASE}],
            suites=[
                {"suite": "exact_match"},
                {"suite": "latency", "options": {"requests": 4, "concurrency": [2], "max_tokens": 3}},
            ],
            category_field="kind",
            concurrency=4,
        )
    )
    events = evaluator.watch(made.name)
    job = evaluator.get(made.name)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, f"{job.error}{evaluator.logs()}"
    assert events[-1].state_change.to_state == job_pb2.JOB_STATE_SUCCEEDED
    result = job.result
    assert (result.rows_read, result.rows_used, result.rows_failed) == (12, 12, 0)
    assert [target.name for target in result.targets] == ["one", "two"]
    assert result.targets[0].metrics["exact_match.accuracy"].value == 1.0
    assert result.targets[0].metrics["latency.ttft_ms.c2"].HasField("low")
    (same,) = [found for found in result.comparisons if found.metric == "exact_match.accuracy"]
    assert (same.target, same.baseline, same.difference, same.p_value) == ("two", "one", 0.0, 1.0)
    records = (evaluator.download(result.records_artifact) / "records.jsonl").read_text().split("\n")
    assert len([line for line in records if line]) == 2 * (12 + 4)
    report = evaluator.download(result.report_artifact)
    assert json.loads((report / "report.json").read_text())["categories"][0]["category"] == "flower"
    assert "<script" not in (report / "report.html").read_text()
    assert (
        evaluator.stores.artifacts.get(result.report_artifact.removeprefix("artifacts/"), tenant="acme").kind
        == "report"
    )


def test_cancel_in_mid_job(evaluator: Evaluator) -> None:
    made = evaluator.create(spec(evaluator.upload(ROWS * 200), concurrency=1))
    evaluator.wait_until(lambda: evaluator.step(made.name) >= 5, "the first answers")
    evaluator.cancel(made.name)
    events = evaluator.watch(made.name)
    assert events[-1].state_change.to_state == job_pb2.JOB_STATE_CANCELLED
    job = evaluator.get(made.name)
    assert not job.result.report_artifact
    evaluator.wait_until(lambda: not evaluator.children(evaluator.worker), "the end of the job's process")


def test_a_killed_worker_costs_no_answers(evaluator: Evaluator) -> None:
    """The worker and its job die at once; another goes on from the last checkpoint. Earns its fifteen seconds: it is what
    a job of hours stands on."""
    rows, concurrency = [{"prompt": f"w{i}", "completion": f"w{i}"} for i in range(240)], 4
    before = evaluator.asked()
    made = evaluator.create(spec(evaluator.upload(rows), concurrency=concurrency))
    evaluator.wait_until(lambda: len(checkpoints(evaluator, made.name)) >= 2, "two checkpoints")
    for pid in (*evaluator.children(evaluator.worker), evaluator.worker.pid):
        os.kill(pid, signal.SIGKILL)
    evaluator.worker.wait()
    kept = max(checkpoints(evaluator, made.name))
    asked_by_the_first = evaluator.asked() - before
    assert 0 < kept < len(rows)
    evaluator.worker = evaluator.start_worker()
    events = evaluator.watch(made.name)
    job = evaluator.get(made.name)
    assert (job.state, job.attempt) == (job_pb2.JOB_STATE_SUCCEEDED, 2), f"{job.error}{evaluator.logs()}"
    assert any(f"going on with {kept} answers" in event.message for event in events)
    assert job.result.targets[0].metrics["exact_match.accuracy"].value == 1.0
    asked_by_the_second = evaluator.asked() - before - asked_by_the_first
    # Requests that were on their way when the first worker died end after it was counted.
    assert len(rows) - kept <= asked_by_the_second <= len(rows) - kept + concurrency


def checkpoints(evaluator: Evaluator, name: str) -> list[int]:
    """Answers in each checkpoint that the job has handed over."""
    evaluator.step(name)  # fails where the job has ended
    job = evaluator.stores.jobs.get(name.removeprefix("evaluationJobs/"))
    return [checkpoint["step"] for checkpoint in job.checkpoints]


def test_rows_that_get_no_answer_fail_the_job_with_their_reason(evaluator: Evaluator) -> None:
    rows = [{"prompt": "oak", "completion": "oak"}]
    made = evaluator.create(spec(evaluator.upload(rows), suites=[{"suite": "perplexity"}]))
    evaluator.watch(made.name)
    job = evaluator.get(made.name)
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert "no log-probabilities" in job.error.message


async def test_an_evaluation_meets_the_contract(evaluator: Evaluator) -> None:
    """The one rule that needs a worker; the others are tried in tests/contract."""
    (check,) = [check for check in EVALUATOR_CHECKS if check_name(check) == "evaluation_succeeds"]
    async with grpc.aio.insecure_channel(evaluator.address) as channel:
        metadata = tuple(call_metadata(tenant="acme", internal_token="internal-token"))
        target = EvaluatorTarget(
            channel, metadata=metadata, model=BASE, dataset=evaluator.upload(ROWS), run_seconds=60.0
        )
        await assert_check(check, target)


def test_what_cannot_work_is_refused_before_it_is_queued(evaluator: Evaluator) -> None:
    dataset = evaluator.upload(ROWS)

    def refused(**changes: Any) -> MartletError:
        return refusal(lambda: evaluator.create(spec(dataset, **changes)))

    error = refused(targets=[{"model": "echo-bse"}])
    assert (error.code, error.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert "spec.targets.0.model" in error.message
    evaluator.stores.models.publish(PublishedModel("ft:theirs", "adapter", "umbrella", "a1", BASE, lora_rank=4))
    assert refused(targets=[{"model": "ft:theirs"}]).code == "NOT_FOUND"
    error = refused(suites=[{"suite": "judge", "options": {"model": "no-judge"}}])
    assert (error.code, "spec.suites.0.options.model" in error.message) == ("NOT_FOUND", True)
    external = {"name": "x", "model": "m", "engine": "TARGET_ENGINE_EXTERNAL", "base_url": "http://127.0.0.1:1/v1"}
    assert refused(targets=[external]).reason == "BASE_URL_NOT_ALLOWED"
    inside = {"model": BASE, "engine": "TARGET_ENGINE_TRANSFORMERS"}
    assert refused(targets=[inside]).reason == "IN_PROCESS_TARGETS_OFF"
    assert "did you mean kind" in refused(category_field="kinds").message
    theirs = evaluator.upload(ROWS, tenant="umbrella")
    assert refusal(lambda: evaluator.create(spec(theirs))).code == "NOT_FOUND"
    bad = evaluator.upload([*ROWS, {"prompt": "oak"}])
    error = refusal(lambda: evaluator.create(spec(bad)))
    assert (error.code, "line 4" in error.message) == ("INVALID_ARGUMENT", True)
    task = {"suite": "lm_eval", "options": {"tasks": [{"task": "gsm8kk"}]}}
    assert "did you mean gsm8k" in refused(suites=[task]).message
    task = {"suite": "lm_eval", "options": {"tasks": [{"task": "gsm8k"}]}}
    error = refusal(lambda: evaluator.create({**spec(""), "suites": [task]}))
    assert (error.reason, error.violations[0].field) == ("NO_BENCHMARK_DATA", "spec.suites.0.options.tasks.0.dataset")
