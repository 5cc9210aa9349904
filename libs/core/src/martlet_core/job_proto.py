"""Jobs and their events as the messages of ``martlet.common.v1``, for every stage's servicer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2
from martlet.common.v1 import job_pb2

from martlet_core.errors import InvalidArgument, error_from_dict
from martlet_core.jobs import Job, JobEvent, JobState
from martlet_core.rpc.status import to_status

_LEVELS = {
    "info": job_pb2.EVENT_LEVEL_INFO,
    "warn": job_pb2.EVENT_LEVEL_WARN,
    "error": job_pb2.EVENT_LEVEL_ERROR,
}


def state_to_proto(state: JobState) -> job_pb2.JobState:
    """``JobState`` as the enum of the contract."""
    return cast("job_pb2.JobState", job_pb2.JobState.Value(f"JOB_STATE_{state.value}"))


def state_from_proto(state: int) -> JobState:
    """The enum of the contract as ``JobState``. InvalidArgument for UNSPECIFIED and unknown numbers."""
    name = job_pb2.JobState.Name(state) if state in job_pb2.JobState.values() else str(state)
    try:
        return JobState(name.removeprefix("JOB_STATE_"))
    except ValueError:
        raise InvalidArgument.field("states", f"{name} is no state that a job can have") from None


def states_from_proto(states: Iterable[int]) -> list[JobState]:
    """A list request's filter."""
    return [state_from_proto(state) for state in states]


def time_to_proto(seconds: float) -> Timestamp | None:
    """Seconds since the epoch as a Timestamp; None for 0.0, which means "not yet"."""
    if not seconds:
        return None
    timestamp = Timestamp()
    timestamp.FromMicroseconds(round(seconds * 1_000_000))
    return timestamp


def error_to_proto(error: Mapping[str, Any] | None) -> status_pb2.Status | None:
    """``Job.error`` as a Status; None when there is none."""
    return to_status(error_from_dict(dict(error))) if error else None


def progress_to_proto(job: Job, queue_position: int) -> job_pb2.JobProgress:
    """How far a job has come."""
    progress = job.progress
    step, total = int(progress.get("step", 0)), int(progress.get("total_steps", 0))
    fraction = 1.0 if job.state is JobState.SUCCEEDED else min(1.0, step / total) if total else 0.0
    message = job_pb2.JobProgress(
        step=step,
        total_steps=total,
        fraction=fraction,
        metrics={name: float(value) for name, value in progress.get("metrics", {}).items()},
        queue_position=queue_position,
        phase=str(progress.get("phase", "")) if job.state.is_held else "",
        queued_reason=job.queued_reason if job.state is JobState.QUEUED else "",
    )
    eta_seconds = progress.get("eta_seconds")
    if eta_seconds is not None and job.state.is_held:
        eta = Duration()
        eta.FromMilliseconds(round(eta_seconds * 1000))
        message.eta.CopyFrom(eta)
    return message


def common_fields(job: Job, queue_position: int) -> dict[str, Any]:
    """The fields that every job resource has, by their names in the contract; all but ``name``, ``spec`` and
    ``result``.
    """
    return {
        "display_name": job.display_name,
        "state": state_to_proto(job.state),
        # A failure that another attempt follows is in the events; ``error`` is for those that nothing follows.
        "error": error_to_proto(job.error) if job.state in (JobState.FAILED, JobState.CANCELLED) else None,
        "create_time": time_to_proto(job.create_time),
        "start_time": time_to_proto(job.start_time),
        "end_time": time_to_proto(job.end_time),
        "update_time": time_to_proto(job.update_time),
        "labels": dict(job.labels),
        "attempt": job.attempt,
        "progress": progress_to_proto(job, queue_position),
    }


def event_to_proto(event: JobEvent) -> job_pb2.JobEvent:
    """One event."""
    message = job_pb2.JobEvent(
        cursor=event.cursor,
        create_time=time_to_proto(event.create_time),
        level=_LEVELS.get(event.level, job_pb2.EVENT_LEVEL_INFO),
        attempt=event.attempt,
        message=event.message,
    )
    data = event.data
    match event.type:
        case "state":
            before = data.get("from")
            message.state_change.from_state = (
                state_to_proto(JobState(before)) if before else job_pb2.JOB_STATE_UNSPECIFIED
            )
            message.state_change.to_state = state_to_proto(JobState(data["to"]))
            message.state_change.reason = data.get("reason", "")
        case "metrics":
            message.metrics.step = data["step"]
            message.metrics.values.update(data["values"])
        case "checkpoint":
            message.checkpoint.step = data["step"]
            message.checkpoint.artifact = f"artifacts/{data['artifact_id']}"
        case _:
            message.log_line.source = data.get("source", "worker")
    return message
