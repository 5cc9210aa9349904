"""Messages of ``martlet.trainer.v1`` to jobs and back. Knows the contract and the job record, and decides nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from martlet.trainer.v1 import merge_job_pb2, training_job_pb2, training_service_pb2
from martlet_core.errors import InvalidArgument
from martlet_core.ids import ID_PATTERN
from martlet_core.job_proto import common_fields, time_to_proto
from martlet_core.job_service import NewJob
from martlet_core.jobs import Job

from martlet_trainer.base_models.catalog import BaseModel
from martlet_trainer.config import TrainingConfig
from martlet_trainer.naming import MERGE, TRAINING, checkpoint_model_name

_COLLECTIONS = {TRAINING: "trainingJobs", MERGE: "mergeJobs"}


def job_name(kind: str, job_id: str) -> str:
    """The resource name of a job."""
    return f"{_COLLECTIONS[kind]}/{job_id}"


def job_id(name: str, kind: str) -> str:
    """The id in a resource name. InvalidArgument if it is no name of that kind of job."""
    collection = _COLLECTIONS[kind]
    found = re.fullmatch(f"{collection}/({ID_PATTERN.pattern})", name)
    if found is None:
        raise InvalidArgument.field("name", f"is {name!r}; write {collection}/<id>")
    return found.group(1)


def spec_to_dict(spec: Message) -> dict[str, Any]:
    """A spec as it is kept in the job's record: what was asked for, fields by their names in the contract.

    Raises:
        InvalidArgument: it holds fields that the contract doesn't know, or of another type than it says; protobuf would
            ignore both in silence.
    """
    _refuse_unknown_fields(spec, "spec")
    return MessageToDict(spec, preserving_proto_field_name=True)


def _refuse_unknown_fields(message: Message, path: str) -> None:
    numbers = sorted({field.field_number for field in UnknownFieldSet(message)})
    if numbers:
        names: Mapping[int, Any] = message.DESCRIPTOR.fields_by_number
        said = [
            f"{names[n].name} (field {n}) is of another type" if n in names else f"field {n} isn't known"
            for n in numbers
        ]
        raise InvalidArgument.field(path, f"{', '.join(said)}; see {message.DESCRIPTOR.full_name} in the contract")
    for field, value in message.ListFields():
        if isinstance(value, Message):
            _refuse_unknown_fields(value, f"{path}.{field.name}")


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


def training_job_to_proto(job: Job, queue_position: int = 0) -> training_job_pb2.TrainingJob:
    """A training job as the contract shows it."""
    message = training_job_pb2.TrainingJob(name=job_name(TRAINING, job.id), **common_fields(job, queue_position))
    ParseDict(dict(job.spec), message.spec, ignore_unknown_fields=True)
    if job.result:
        ParseDict(dict(job.result), message.result, ignore_unknown_fields=True)
    return message


def merge_job_to_proto(job: Job, queue_position: int = 0) -> merge_job_pb2.MergeJob:
    """A merge job as the contract shows it."""
    message = merge_job_pb2.MergeJob(name=job_name(MERGE, job.id), **common_fields(job, queue_position))
    ParseDict(dict(job.spec), message.spec, ignore_unknown_fields=True)
    if job.result:
        ParseDict(dict(job.result), message.result, ignore_unknown_fields=True)
    return message


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
