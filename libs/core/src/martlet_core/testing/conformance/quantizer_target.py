"""What the rules of the quantizer contract are tried on, and how it is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grpc
from martlet.common.v1 import job_pb2
from martlet.quantizer.v1 import quantization_job_pb2 as pb
from martlet.quantizer.v1 import quantization_service_pb2 as service_pb
from martlet.quantizer.v1 import quantization_service_pb2_grpc as service_grpc

from martlet_core.testing.conformance.checks import Target, eventually, read_all

SERVICE = "martlet.quantizer.v1.QuantizationService"
UNKNOWN_JOB = "quantizationJobs/nosuchjob00000000000"
TENANT_KEY = "x-martlet-tenant"
_REQUEST_FIELDS = ("request_id", "validate_only")
_JOB_FIELDS = ("display_name", "labels")


@dataclass(frozen=True)
class QuantizerTarget(Target):
    """A quantizer to check. Whether workers take the jobs makes no difference: no job is let run to its end unless
    ``run_seconds`` is set.

    Attributes:
        model: a whole model that it knows.
        method: a method that can quantize it.
        calibration_dataset: ``artifacts/{id}`` of rows to calibrate with; empty skips the rules that need one.
        adapter: an adapter, a fine-tuned model's name or ``artifacts/{id}``; empty skips the rule about adapters.
        other_tenant: another tenant's name for ``x-martlet-tenant``; empty skips the rules about tenants.
        run_seconds: time that a job may take to its end; 0 skips the rule about results.
    """

    model: str = "smollm2-135m-instruct"
    method: str = "bnb-nf4"
    calibration_dataset: str = ""
    adapter: str = ""
    other_tenant: str = ""
    run_seconds: float = 0.0

    @property
    def stub(self) -> Any:
        """Stub of the service."""
        return service_grpc.QuantizationServiceStub(self.channel)

    def as_other_tenant(self) -> QuantizerTarget:
        """The same service, called by the other tenant."""
        kept = tuple(pair for pair in self.metadata if pair[0] != TENANT_KEY)
        return replace(self, metadata=(*kept, (TENANT_KEY, self.other_tenant)))

    def calls_about(self, name: str) -> dict[str, Callable[[], Awaitable[Any]]]:
        """Each method that takes a job's name, ready to be called with this one."""
        verbs = ("Get", "Cancel", "Pause", "Resume")
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            f"{verb}QuantizationJob": partial(ask, self, verb, name) for verb in verbs
        }
        events = service_pb.ListQuantizationJobEventsRequest(name=name)
        calls["ListQuantizationJobEvents"] = partial(self.stub.ListQuantizationJobEvents, events, **self.call_options)
        return {**calls, "WatchQuantizationJob": partial(watch, self, name)}


def job_request(target: QuantizerTarget, **changes: Any) -> service_pb.CreateQuantizationJobRequest:
    """A request for a sound job; ``changes`` replace fields of the request, the job or its spec, by name."""
    request_fields = {name: changes.pop(name) for name in _REQUEST_FIELDS if name in changes}
    job_fields = {name: changes.pop(name) for name in _JOB_FIELDS if name in changes}
    spec = pb.QuantizationSpec(**{"model": target.model, "method": target.method, **changes})
    job = pb.QuantizationJob(spec=spec, **job_fields)
    return service_pb.CreateQuantizationJobRequest(quantization_job=job, **request_fields)


async def create(target: QuantizerTarget, **changes: Any) -> pb.QuantizationJob:
    """A job that was just created; see ``job_request``."""
    return await target.stub.CreateQuantizationJob(job_request(target, **changes), **target.call_options)


async def ask(target: QuantizerTarget, verb: str, name: str) -> pb.QuantizationJob:
    """Call ``<verb>QuantizationJob`` of a job: Get, Cancel, Pause, Resume."""
    request = getattr(service_pb, f"{verb}QuantizationJobRequest")(name=name)
    return await getattr(target.stub, f"{verb}QuantizationJob")(request, **target.call_options)


async def watch(target: QuantizerTarget, name: str, after: str = "") -> list[job_pb2.JobEvent]:
    """All that WatchQuantizationJob says until it ends."""
    request = service_pb.WatchQuantizationJobRequest(name=name, after_cursor=after)
    return await read_all(target.stub.WatchQuantizationJob(request, **target.call_options))


async def wait_for_state(target: QuantizerTarget, name: str, *states: int) -> pb.QuantizationJob:
    """The job once it is in one of ``states``; RuleBroken when that takes too long."""
    wanted = " or ".join(job_pb2.JobState.Name(state) for state in states)  # pyright: ignore[reportArgumentType]

    async def probe() -> pb.QuantizationJob | None:
        job = await ask(target, "Get", name)
        return job if job.state in states else None

    return await eventually(f"{name} {wanted}", probe, seconds=target.timeout_seconds)


async def cancelled_job(target: QuantizerTarget, **changes: Any) -> pb.QuantizationJob:
    """A job that was created and cancelled, and has come to rest."""
    job = await create(target, **changes)
    await ask(target, "Cancel", job.name)
    return await wait_for_state(target, job.name, job_pb2.JOB_STATE_CANCELLED)


async def cancel_all(target: QuantizerTarget, *names: str) -> None:
    """Clean up: cancel the jobs that haven't ended."""
    for name in names:
        try:
            await ask(target, "Cancel", name)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
