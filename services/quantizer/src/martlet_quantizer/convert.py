"""Messages of ``martlet.quantizer.v1`` to jobs and back. Knows the contract and the job record, and decides nothing."""

from __future__ import annotations

from martlet.quantizer.v1 import quantization_job_pb2, quantization_service_pb2
from martlet_core.job_resource import JobResource, spec_to_dict
from martlet_core.job_service import NewJob

from martlet_quantizer.config import QuantizationConfig
from martlet_quantizer.methods import MAX_PERPLEXITY_RATIO, Method
from martlet_quantizer.naming import QUANTIZATION

QUANTIZATION_JOBS = JobResource(QUANTIZATION, "quantizationJobs", quantization_job_pb2.QuantizationJob)


def new_job(
    request: quantization_service_pb2.CreateQuantizationJobRequest, config: QuantizationConfig, queue: str
) -> NewJob:
    """What the job service needs to create a quantization."""
    job = request.quantization_job
    return NewJob(
        kind=QUANTIZATION,
        queue=queue,
        spec=spec_to_dict(job.spec),
        display_name=job.display_name,
        labels=dict(job.labels),
        request_id=request.request_id,
        priority=config.resources.priority,
        max_attempts=config.resources.max_attempts,
    )


def method_to_proto(method: Method) -> quantization_service_pb2.QuantizationMethod:
    """A method, with its defaults."""
    bits = method.bits_of(None)
    return quantization_service_pb2.QuantizationMethod(
        name=method.name,
        description=method.description,
        family=method.family,
        bits=bits,
        needs_calibration=method.needs_calibration,
        max_perplexity_ratio=MAX_PERPLEXITY_RATIO[bits],
        options=sorted(method.options),
    )
