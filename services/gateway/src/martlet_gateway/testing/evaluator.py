"""An evaluator for tests of whole gateways: it speaks real gRPC, keeps jobs in a dict by the rules of every job store, and asks
no model. ``record`` writes what the suite ``graders`` writes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from martlet.common.v1 import job_pb2
from martlet.evaluator.v1 import evaluation_job_pb2, evaluation_service_pb2, evaluation_service_pb2_grpc
from martlet_core.artifacts.types import ArtifactStore
from martlet_core.errors import AlreadyExists, MartletError
from martlet_core.ids import new_id
from martlet_core.job_rules import TRANSITIONS, illegal_transition, unknown_job
from martlet_core.jobs import JobState
from martlet_core.rpc.context import call_context
from martlet_core.rpc.status import to_status

from martlet_gateway.testing.trainer import Call

_PREFIX = "evaluationJobs/"
REPORT = "<!doctype html><title>Evaluation</title>"


@dataclass
class EvaluatorDouble(evaluation_service_pb2_grpc.EvaluationServiceServicer):
    """An evaluator that keeps jobs in a dict and evaluates nothing.

    Attributes:
        calls: everything that reached it.
        jobs: by bare id.
        owners: tenants by bare id.
        failures: errors to raise by method, each once.
        by_request_id: bare id by tenant and request id.
        at_once: store and records that new jobs end with as soon as they are made; None leaves them queued.
    """

    calls: list[Call] = field(default_factory=list)
    jobs: dict[str, evaluation_job_pb2.EvaluationJob] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    by_request_id: dict[tuple[str, str], str] = field(default_factory=dict)
    at_once: tuple[ArtifactStore, Sequence[Mapping[str, Any]]] | None = None

    def _enter(self, method: str, request: Any) -> None:
        context = call_context()
        self.calls.append(Call(method, context.tenant, context.request_id, request))
        if self.failures.get(method):
            raise self.failures[method].pop(0)

    def _own(self, name: str) -> evaluation_job_pb2.EvaluationJob:
        bare = name.removeprefix(_PREFIX)
        if self.owners.get(bare) != call_context().tenant:
            raise unknown_job(bare)
        return self.jobs[bare]

    async def CreateEvaluationJob(
        self, request: evaluation_service_pb2.CreateEvaluationJobRequest, context: Any
    ) -> evaluation_job_pb2.EvaluationJob:
        self._enter("CreateEvaluationJob", request)
        key = (call_context().tenant, request.request_id)
        if request.request_id and key in self.by_request_id:
            made = self.jobs[self.by_request_id[key]]
            if made.spec != request.evaluation_job.spec:
                raise AlreadyExists("The request id made a job with another spec.", reason="REQUEST_ID_TAKEN")
            return made
        job = evaluation_job_pb2.EvaluationJob()
        job.CopyFrom(request.evaluation_job)
        job.name, job.state = f"{_PREFIX}{new_id()}", job_pb2.JOB_STATE_QUEUED
        job.create_time.GetCurrentTime()
        bare = job.name.removeprefix(_PREFIX)
        self.jobs[bare], self.owners[bare] = job, call_context().tenant
        self.by_request_id[key] = bare
        return self.finish(bare, *self.at_once) if self.at_once else job

    async def GetEvaluationJob(self, request: Any, context: Any) -> evaluation_job_pb2.EvaluationJob:
        self._enter("GetEvaluationJob", request)
        return self._own(request.name)

    async def ListEvaluationJobs(self, request: Any, context: Any) -> evaluation_service_pb2.ListEvaluationJobsResponse:
        self._enter("ListEvaluationJobs", request)
        own = [i for i in sorted(self.jobs, reverse=True) if self.owners[i] == call_context().tenant]
        own = [i for i in own if not request.states or self.jobs[i].state in request.states]
        own = [i for i in own if all(self.jobs[i].labels.get(k) == v for k, v in request.labels.items())]
        own = [i for i in own if not request.page_token or i < request.page_token]
        size = request.page_size or 20
        token = own[size - 1] if len(own) > size else ""
        page = [self.jobs[i] for i in own[:size]]
        return evaluation_service_pb2.ListEvaluationJobsResponse(evaluation_jobs=page, next_page_token=token)

    async def CancelEvaluationJob(self, request: Any, context: Any) -> evaluation_job_pb2.EvaluationJob:
        self._enter("CancelEvaluationJob", request)
        job: Any = self._own(request.name)
        before = JobState(job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_"))
        move = TRANSITIONS["cancel"].get(before)
        if move is None:
            raise illegal_transition(request.name.removeprefix(_PREFIX), before, "cancel")
        job.state = job_pb2.JobState.Value(f"JOB_STATE_{move.to.value}")
        return job

    def job(self, run_id: str) -> evaluation_job_pb2.EvaluationJob:
        """The job of a run, to change."""
        return self.jobs[run_id.removeprefix("evalrun_")]

    def finish(
        self, run_id: str, artifacts: ArtifactStore, records: Sequence[Mapping[str, Any]]
    ) -> evaluation_job_pb2.EvaluationJob:
        """Let a run's job succeed with these records and a report."""
        job = self.job(run_id)
        tenant = self.owners[job.name.removeprefix(_PREFIX)]
        lines = b"".join(orjson.dumps(record) + b"\n" for record in records)
        with tempfile.TemporaryDirectory() as name:
            for kind, file, data in (("records", "records.jsonl", lines), ("report", "report.html", REPORT.encode())):
                directory = Path(name, kind)
                directory.mkdir()
                (directory / file).write_bytes(data)
                made = artifacts.put_directory(directory, kind="report", tenant=tenant)
                setattr(job.result, f"{kind}_artifact", f"artifacts/{made.id}")
        job.result.rows_read = job.result.rows_used = len(records)
        job.state = job_pb2.JOB_STATE_SUCCEEDED
        job.end_time.GetCurrentTime()
        return job

    def fail(self, run_id: str, error: MartletError) -> None:
        """Let a run's job fail."""
        job = self.job(run_id)
        job.state = job_pb2.JOB_STATE_FAILED
        job.error.CopyFrom(to_status(error))
        job.end_time.GetCurrentTime()


def record(
    row: int, item: Mapping[str, Any], answer: str, scores: Mapping[str, float], *, error: str = ""
) -> dict[str, Any]:
    """A record of the suite ``graders``: a row's answer, and a score (1 passes) by grader."""
    results = [
        {"name": n, "type": "string_check", "passed": s >= 1, "score": s, "sample": None} for n, s in scores.items()
    ]
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14, "cached_tokens": 0}
    return {
        "row": row,
        "status": "error" if error else "pass" if all(result["passed"] for result in results) else "fail",
        "item": item,
        "sample": {
            "model": "smollm2-135m-instruct",
            "input": [{"role": "user", "content": str(item)}],
            "output": [] if error else [{"role": "assistant", "content": answer}],
            "finish_reason": "" if error else "stop",
            "usage": None if error else usage,
            "error": error or None,
        },
        "results": [] if error else results,
    }
