"""Messages of ``martlet.trainer.v1`` to jobs and back. Knows the contract and the job record, and decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from martlet.trainer.v1 import merge_job_pb2, training_job_pb2, training_service_pb2
from martlet_core.artifacts.types import PublishedModel
from martlet_core.job_proto import time_to_proto
from martlet_core.job_resource import JobResource, spec_to_dict
from martlet_core.job_service import NewJob
from martlet_core.jobs import Job
from martlet_core.model_rules import CHAT_TEMPLATE, REGISTERED_SOURCE
from martlet_inputs.base_models.catalog import BaseModel

from martlet_trainer.config import TrainingConfig
from martlet_trainer.naming import MERGE, TRAINING, checkpoint_model_name

TRAINING_JOBS = JobResource(TRAINING, "trainingJobs", training_job_pb2.TrainingJob)
MERGE_JOBS = JobResource(MERGE, "mergeJobs", merge_job_pb2.MergeJob)


def new_training_job(
    request: training_service_pb2.CreateTrainingJobRequest, config: TrainingConfig, queue: str
) -> NewJob:
    """What the job service needs to create a training."""
    job = request.training_job
    return NewJob(
        kind=TRAINING,
        queue=queue,
        spec=spec_to_dict(job.spec),
        display_name=job.display_name,
        labels=dict(job.labels),
        request_id=request.request_id,
        priority=config.resources.priority,
        max_attempts=config.resources.max_attempts,
    )


def new_merge_job(job: merge_job_pb2.MergeJob, request_id: str, queue: str) -> NewJob:
    """What the job service needs to create a merge."""
    return NewJob(
        kind=MERGE,
        queue=queue,
        spec=spec_to_dict(job.spec),
        display_name=job.display_name,
        labels=dict(job.labels),
        request_id=request_id,
    )


def checkpoint_to_proto(job: Job, checkpoint: Mapping[str, Any]) -> training_job_pb2.TrainingCheckpoint:
    """An entry of ``Job.checkpoints``."""
    return training_job_pb2.TrainingCheckpoint(
        artifact=f"artifacts/{checkpoint['artifact_id']}",
        step=checkpoint["step"],
        create_time=time_to_proto(checkpoint["create_time"]),
        metrics=checkpoint["metrics"],
        fine_tuned_model=checkpoint_model_name(job, checkpoint["step"]) or "",
    )


def base_model_to_proto(model: BaseModel) -> training_service_pb2.BaseModel:
    """A base model of the catalogue."""
    return training_service_pb2.BaseModel(
        name=model.name,
        source=model.source_text,
        parameter_count=model.parameter_count,
        context_length=model.context_length,
        license=model.license,
    )


def registered_model_to_proto(model: PublishedModel) -> training_service_pb2.BaseModel:
    """A base model that a tenant registered."""
    return training_service_pb2.BaseModel(
        name=model.name,
        source=str(model.metadata[REGISTERED_SOURCE]),
        chat_template=str(model.metadata.get(CHAT_TEMPLATE, "")),
        create_time=time_to_proto(model.create_time),
    )
