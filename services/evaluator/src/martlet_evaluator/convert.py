"""Messages of ``martlet.evaluator.v1`` to jobs and back. Knows the contract and the job record, and decides nothing."""

from __future__ import annotations

from martlet.evaluator.v1 import evaluation_job_pb2, evaluation_service_pb2
from martlet_core.job_resource import JobResource, spec_to_dict
from martlet_core.job_service import NewJob

from martlet_evaluator.config import EvaluationConfig
from martlet_evaluator.naming import EVALUATION
from martlet_evaluator.suite_options import SUITE_OPTIONS

EVALUATION_JOBS = JobResource(EVALUATION, "evaluationJobs", evaluation_job_pb2.EvaluationJob)


def new_evaluation_job(
    request: evaluation_service_pb2.CreateEvaluationJobRequest, config: EvaluationConfig, queue: str
) -> NewJob:
    """What the job service needs to create an evaluation."""
    job = request.evaluation_job
    return NewJob(
        kind=EVALUATION,
        queue=queue,
        spec=spec_to_dict(job.spec),
        display_name=job.display_name,
        labels=dict(job.labels),
        request_id=request.request_id,
        priority=config.resources.priority,
        max_attempts=config.resources.max_attempts,
    )


def suite_to_proto(name: str) -> evaluation_service_pb2.EvaluationSuite:
    """A suite as the contract shows it."""
    options = SUITE_OPTIONS[name]
    return evaluation_service_pb2.EvaluationSuite(
        name=name, description=options.description, metrics=options.metrics, options=list(options.model_fields)
    )
