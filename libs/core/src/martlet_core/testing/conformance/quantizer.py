"""The rules of ``martlet.quantizer.v1``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from martlet.common.v1 import job_pb2
from martlet.quantizer.v1 import quantization_job_pb2 as pb
from martlet.quantizer.v1 import quantization_service_pb2 as service_pb
from martlet.quantizer.v1 import quantization_service_pb2_grpc as service_grpc

from martlet_core.testing.conformance.checks import check_list, expect_bad_field, require
from martlet_core.testing.conformance.job_rules import rules_of_jobs
from martlet_core.testing.conformance.jobs import JobKind, Jobs, JobTarget
from martlet_core.testing.conformance.rules import Rule, Skipped, Untried, option


@dataclass(frozen=True)
class QuantizerTarget(JobTarget):
    """A quantizer.

    Attributes:
        model: a whole model that it knows.
        method: a method that can quantize it.
        dataset: ``artifacts/{id}`` of rows to calibrate with.
        adapter: an adapter, a fine-tuned model's name or ``artifacts/{id}``.
    """

    model: str = option("smollm2-135m-instruct", "a whole model that the quantizer knows")
    method: str = option("bnb-nf4", "a method that can quantize the model")
    dataset: str = option("", "artifacts/{id} of rows to calibrate with")
    adapter: str = option("", "an adapter, which must be refused: a fine-tuned model's name or artifacts/{id}")


def _check_quantized(target: QuantizerTarget, job: pb.QuantizationJob, events: Sequence[job_pb2.JobEvent]) -> None:
    result = job.result
    for field in ("model_artifact", "report_artifact"):
        require(getattr(result, field).startswith("artifacts/"), f"{field} is {getattr(result, field)!r}")
    require(result.method == target.method, f"method is {result.method!r}")
    require(0 < result.size_bytes < result.base_size_bytes, f"sizes are {result.size_bytes}, {result.base_size_bytes}")
    require(abs(result.size_ratio - result.size_bytes / result.base_size_bytes) < 1e-6, "size_ratio isn't the ratio")
    require(result.perplexity > 0 and result.base_perplexity > 0 and result.positions > 0, "perplexities are missing")
    require(any(engine.loaded for engine in result.engines), "no engine loaded it")


QUANTIZING = JobKind(
    noun="QuantizationJob",
    service="QuantizationService",
    service_messages=service_pb,
    stub=service_grpc.QuantizationServiceStub,
    job=pb.QuantizationJob,
    spec=pb.QuantizationSpec,
    sound_spec=lambda target: {"model": target.model, "method": target.method, "suffix": "conf-1"},
    another={"seed": 12345},
    bad_fields=(
        ("model", {"model": ""}),
        ("method", {"method": ""}),
        ("dataset", {"calibration": pb.CalibrationSpec(dataset="not a resource name")}),
        ("max_rows", {"calibration": pb.CalibrationSpec(max_rows=1)}),
        ("sequence_length", {"calibration": pb.CalibrationSpec(sequence_length=1)}),
        ("evaluation_dataset", {"evaluation_dataset": "not a resource name"}),
        ("bits", {"options": pb.QuantizationOptions(bits=5)}),
        ("group_size", {"options": pb.QuantizationOptions(group_size=7)}),
        ("max_perplexity_ratio", {"max_perplexity_ratio": 0.5}),
        ("sample_prompts", {"sample_prompts": ["Hello"] * 17}),
        ("suffix", {"suffix": "no spaces / slashes"}),
        ("priority", {"resources": pb.QuantizationResources(priority=10)}),
        ("max_attempts", {"resources": pb.QuantizationResources(max_attempts=0)}),
        ("seed", {"seed": -1}),
    ),
    unknown_inputs=(
        ("model", {"model": "no-such-model-anywhere"}),
        ("method", {"method": "no-such-method"}),
        ("evaluation_dataset", {"evaluation_dataset": "artifacts/nosuchartifact0000"}),
    ),
    result_field="quantized_model",
    short={"max_perplexity_ratio": 1e6},
    success="A sound job ends SUCCEEDED with a model, a report, sizes, perplexities and an engine that loaded the model.",
    check_success=_check_quantized,
)


async def methods_are_listed(jobs: Jobs) -> None:
    """ListQuantizationMethods gives methods with names of their own, bits, a family and a limit above 1, in pages."""

    async def page(size: int, token: str) -> tuple[Sequence[str], str]:
        methods, token = await _methods(jobs, size, token)
        for method in methods:
            sound = method.family and method.description and method.bits > 0 and method.max_perplexity_ratio > 1
            require(sound, f"the method is {method}")
        return [method.name for method in methods], token

    names = await check_list("ListQuantizationMethods", page)
    require(jobs.target.method in names, f"the methods are {names}, without {jobs.target.method}")


async def adapters_are_refused(jobs: Jobs) -> None:
    """An adapter is INVALID_ARGUMENT: it is merged first."""
    if not jobs.target.adapter:
        raise Untried("name an adapter: --adapter")
    await expect_bad_field("an adapter", jobs.create(model=jobs.target.adapter), "model")


async def evaluation_is_not_calibration(jobs: Jobs) -> None:
    """A calibration set that is the evaluation set as well is INVALID_ARGUMENT, whichever method."""
    dataset = jobs.target.dataset
    if not dataset:
        raise Untried("name rows to calibrate with: --dataset")
    methods, _ = await _methods(jobs, 1000, "")
    method = next((method.name for method in methods if method.needs_calibration), "")
    if not method:
        raise Skipped("no method looks at texts")
    calibration = pb.CalibrationSpec(dataset=dataset)
    call = jobs.create(method=method, calibration=calibration, evaluation_dataset=dataset)
    await expect_bad_field("the calibration set for evaluation", call, "evaluation_dataset")


async def _methods(jobs: Jobs, size: int, token: str) -> tuple[Sequence[service_pb.QuantizationMethod], str]:
    request = service_pb.ListQuantizationMethodsRequest(page_size=size, page_token=token)
    stub: Any = service_grpc.QuantizationServiceStub(jobs.target.channel)
    answer = await stub.ListQuantizationMethods(request, **jobs.target.call_options)
    return answer.methods, answer.next_page_token


#: All rules, in the order they are tried.
QUANTIZER_RULES: tuple[Rule, ...] = rules_of_jobs(
    QUANTIZING, methods_are_listed, adapters_are_refused, evaluation_is_not_calibration
)
