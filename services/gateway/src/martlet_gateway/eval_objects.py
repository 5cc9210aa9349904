"""Evaluation jobs and their records -> OpenAI's ``eval.run`` and ``eval.run.output_item``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from martlet.common.v1 import job_pb2
from martlet.evaluator.v1 import evaluation_job_pb2
from martlet_core.errors import NotFound
from martlet_core.rpc.status import from_status

from martlet_gateway import proto_json
from martlet_gateway.eval_request import renamed
from martlet_gateway.eval_store import StoredRun

ITEM_PREFIX = "outputitem_"
#: OpenAI's statuses. A job that is being paused or cancelled still runs; one that is paused waits.
STATUSES = {
    job_pb2.JOB_STATE_VALIDATING: "queued",
    job_pb2.JOB_STATE_QUEUED: "queued",
    job_pb2.JOB_STATE_PAUSED: "queued",
    job_pb2.JOB_STATE_RUNNING: "in_progress",
    job_pb2.JOB_STATE_PAUSING: "in_progress",
    job_pb2.JOB_STATE_CANCELLING: "in_progress",
    job_pb2.JOB_STATE_SUCCEEDED: "completed",
    job_pb2.JOB_STATE_FAILED: "failed",
    job_pb2.JOB_STATE_CANCELLED: "canceled",
}
FINAL = frozenset({"completed", "failed", "canceled"})
_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "cached_tokens": 0}
#: How answers are drawn where a run doesn't say: the evaluator's defaults.
DEFAULT_SAMPLING: Mapping[str, Any] = {"max_tokens": 256, "temperature": 0.0, "seed": 42}


def outcome(job: evaluation_job_pb2.EvaluationJob, run: StoredRun) -> dict[str, Any]:
    """What a run's job says of it, before its records are counted; kept as it is once the job is over."""
    error = None
    if job.state == job_pb2.JOB_STATE_FAILED:
        error = _error(renamed(from_status(job.error)))
    elif job.state == job_pb2.JOB_STATE_SUCCEEDED and not job.result.records_artifact:
        error = {"code": "bad_records", "message": "The evaluator kept no records of this run."}
    return {
        "status": STATUSES.get(job.state, "queued"),
        "error": error,
        "result_counts": {"total": run.rows, "passed": 0, "failed": 0, "errored": 0},
        "per_testing_criteria_results": [],
        "per_model_usage": [],
        "martlet": {
            "name": job.name,
            "state": proto_json.enum_name(job_pb2.JobState.DESCRIPTOR, job.state),
            "attempt": job.attempt,
            "progress": proto_json.to_json(job.progress),
            "result": proto_json.to_json(job.result),
            "end_time": job.end_time.ToJsonString() if job.HasField("end_time") else None,
        },
    }


def lost(run: StoredRun, error: NotFound) -> dict[str, Any]:
    """The same for a run whose job isn't there any more."""
    empty = outcome(evaluation_job_pb2.EvaluationJob(name=f"evaluationJobs/{run.key}"), run)
    return {**empty, "status": "failed", "error": _error(error)}


def to_run(run: StoredRun, came: Mapping[str, Any], report_url: str) -> dict[str, Any]:
    """The ``eval.run`` object."""
    return {
        "id": run.id,
        "object": "eval.run",
        "eval_id": run.eval_id,
        "status": came["status"],
        "model": run.model,
        "name": run.name,
        "created_at": run.created_at,
        "report_url": report_url,
        "result_counts": came["result_counts"],
        "per_model_usage": came["per_model_usage"],
        "per_testing_criteria_results": came["per_testing_criteria_results"],
        "data_source": run.data_source,
        "metadata": dict(run.metadata),
        "error": came["error"],
        "martlet": came["martlet"],
    }


def to_item(record: Mapping[str, Any], place: int, run: StoredRun) -> dict[str, Any]:
    """The ``eval.run.output_item`` object."""
    sample = record.get("sample") or {}
    sampling = {**DEFAULT_SAMPLING, **run.sampling}
    error = sample.get("error") or record.get("error") or None
    return {
        "id": item_id(run, place),
        "object": "eval.run.output_item",
        "run_id": run.id,
        "eval_id": run.eval_id,
        "created_at": run.created_at,
        "status": record["status"],
        "datasource_item_id": record["row"],
        "datasource_item": record.get("item") or {},
        "results": [_result(result) for result in record["results"]],
        "sample": {
            "input": sample.get("input") or [],
            "output": sample.get("output") or [],
            "finish_reason": sample.get("finish_reason") or "",
            "model": sample.get("model") or run.model,
            "usage": {**_NO_USAGE, **(sample.get("usage") or {})},
            "error": {"code": "evaluation_error", "message": error} if isinstance(error, str) else error,
            "temperature": sampling["temperature"],
            "top_p": 1.0,
            "seed": sampling["seed"],
            "max_completion_tokens": sampling["max_tokens"],
        },
    }


def item_id(run: StoredRun, place: int) -> str:
    """Id of the row at a place: the job's and the place, so that it stays."""
    return f"{ITEM_PREFIX}{run.key}_{place}"


def item_place(run: StoredRun, given: str, param: str) -> int:
    """The place that an item's id names. NotFound for ids of something else."""
    prefix, text = f"{ITEM_PREFIX}{run.key}_", given.removeprefix(f"{ITEM_PREFIX}{run.key}_")
    if not given.startswith(prefix) or not text.isdecimal() or len(text) > 12 or str(int(text)) != text:
        raise no_such_item(given, param)
    return int(text)


def no_such_item(given: str, param: str = "output_item_id") -> NotFound:
    """The error for items that aren't there."""
    return NotFound(
        f"No such output item of this run: {given:.100}", reason="EVAL_ITEM_NOT_FOUND", metadata={"param": param}
    )


def _result(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **result,
        "name": result["name"],
        "type": result.get("type"),
        "passed": bool(result["passed"]),
        "score": result.get("score") or 0.0,
        "sample": result.get("sample"),
    }


def _error(error: Any) -> dict[str, Any]:
    return {"code": error.metadata.get("code") or error.reason.lower(), "message": error.message}
