"""What the rules of the trainer contract are tried on, and how it is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grpc
from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import merge_service_pb2_grpc as merge_grpc
from martlet.trainer.v1 import training_job_pb2 as pb
from martlet.trainer.v1 import training_service_pb2 as service_pb
from martlet.trainer.v1 import training_service_pb2_grpc as service_grpc

from martlet_core.testing.conformance.checks import Target, eventually, read_all

SERVICE = "martlet.trainer.v1.TrainingService"
MERGE_SERVICE = "martlet.trainer.v1.MergeService"
UNKNOWN_JOB = "trainingJobs/nosuchjob00000000000"
TENANT_KEY = "x-martlet-tenant"
FINAL_STATES = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)
_REQUEST_FIELDS = ("request_id", "validate_only")
_JOB_FIELDS = ("display_name", "labels")
#: Long enough that no job of a check comes to its end by itself.
_STEPS = 100_000


@dataclass(frozen=True)
class TrainerTarget(Target):
    """A trainer to check. Whether a worker takes the jobs makes no difference: no job is let run to its end unless
    ``run_seconds`` is set.

    Attributes:
        base_model: a base model it knows.
        training_dataset: ``artifacts/{id}`` of rows it can train on.
        other_tenant: another tenant's name for ``x-martlet-tenant``; empty skips the rules about tenants.
        run_seconds: time that a training of one step, or a merge, may take to its end; 0 skips the rules about results.
        adapter: an adapter it can merge, a fine-tuned model's name or ``artifacts/{id}``; empty skips the rules that
            need one.
    """

    base_model: str = "smollm2-135m-instruct"
    training_dataset: str = ""
    other_tenant: str = ""
    run_seconds: float = 0.0
    adapter: str = ""

    @property
    def stub(self) -> Any:
        """Stub of the service."""
        return service_grpc.TrainingServiceStub(self.channel)

    @property
    def merging(self) -> Any:
        """Stub of MergeService."""
        return merge_grpc.MergeServiceStub(self.channel)

    def as_other_tenant(self) -> TrainerTarget:
        """The same service, called by the other tenant."""
        kept = tuple(pair for pair in self.metadata if pair[0] != TENANT_KEY)
        return replace(self, metadata=(*kept, (TENANT_KEY, self.other_tenant)))

    def calls_about(self, name: str) -> dict[str, Callable[[], Awaitable[Any]]]:
        """Each method that takes a job's name, ready to be called with this one."""
        requests = {
            "GetTrainingJob": service_pb.GetTrainingJobRequest(name=name),
            "CancelTrainingJob": service_pb.CancelTrainingJobRequest(name=name),
            "PauseTrainingJob": service_pb.PauseTrainingJobRequest(name=name),
            "ResumeTrainingJob": service_pb.ResumeTrainingJobRequest(name=name),
            "ListTrainingJobEvents": service_pb.ListTrainingJobEventsRequest(name=name),
            "ListTrainingCheckpoints": service_pb.ListTrainingCheckpointsRequest(name=name),
        }
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            method: partial(getattr(self.stub, method), request, **self.call_options)
            for method, request in requests.items()
        }
        return {**calls, "WatchTrainingJob": partial(watch, self, name)}


def spec(target: TrainerTarget, **changes: Any) -> pb.TrainingSpec:
    """A sound spec of a training that goes on for long; ``changes`` replace fields of it."""
    fields = {
        "base_model": target.base_model,
        "training_dataset": target.training_dataset,
        "hyperparameters": pb.Hyperparameters(max_steps=_STEPS, per_device_batch_size=1),
        "tuner": pb.TunerConfig(kind="lora", lora_rank=4),
    }
    return pb.TrainingSpec(**{**fields, **changes})


def job_request(target: TrainerTarget, **changes: Any) -> service_pb.CreateTrainingJobRequest:
    """A request for a sound job; ``changes`` replace fields of the request, the job or its spec, by name."""
    request_fields = {name: changes.pop(name) for name in _REQUEST_FIELDS if name in changes}
    job_fields = {name: changes.pop(name) for name in _JOB_FIELDS if name in changes}
    job = pb.TrainingJob(spec=spec(target, **changes), **job_fields)
    return service_pb.CreateTrainingJobRequest(training_job=job, **request_fields)


async def create(target: TrainerTarget, **changes: Any) -> pb.TrainingJob:
    """A job that was just created; see ``job_request``."""
    return await target.stub.CreateTrainingJob(job_request(target, **changes), **target.call_options)


async def get(target: TrainerTarget, name: str) -> pb.TrainingJob:
    """The job."""
    return await target.stub.GetTrainingJob(service_pb.GetTrainingJobRequest(name=name), **target.call_options)


async def cancel(target: TrainerTarget, name: str) -> pb.TrainingJob:
    """Ask it to stop."""
    return await target.stub.CancelTrainingJob(service_pb.CancelTrainingJobRequest(name=name), **target.call_options)


async def pause(target: TrainerTarget, name: str) -> pb.TrainingJob:
    """Ask it to pause."""
    return await target.stub.PauseTrainingJob(service_pb.PauseTrainingJobRequest(name=name), **target.call_options)


async def resume(target: TrainerTarget, name: str) -> pb.TrainingJob:
    """Queue it again."""
    return await target.stub.ResumeTrainingJob(service_pb.ResumeTrainingJobRequest(name=name), **target.call_options)


async def watch(target: TrainerTarget, name: str, after: str = "") -> list[job_pb2.JobEvent]:
    """All that WatchTrainingJob says until it ends."""
    request = service_pb.WatchTrainingJobRequest(name=name, after_cursor=after)
    return await read_all(target.stub.WatchTrainingJob(request, **target.call_options))


async def wait_for_state(target: TrainerTarget, name: str, *states: int) -> pb.TrainingJob:
    """The job once it is in one of ``states``; RuleBroken when that takes too long."""
    wanted = " or ".join(job_pb2.JobState.Name(state) for state in states)  # pyright: ignore[reportArgumentType]

    async def probe() -> pb.TrainingJob | None:
        job = await get(target, name)
        return job if job.state in states else None

    return await eventually(f"{name} {wanted}", probe, seconds=target.timeout_seconds)


async def cancelled_job(target: TrainerTarget, **changes: Any) -> pb.TrainingJob:
    """A job that was created and cancelled, and has come to rest."""
    job = await create(target, **changes)
    await cancel(target, job.name)
    return await wait_for_state(target, job.name, job_pb2.JOB_STATE_CANCELLED)


async def cancel_all(target: TrainerTarget, *names: str) -> None:
    """Clean up: cancel the jobs that haven't ended."""
    for name in names:
        try:
            await cancel(target, name)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
