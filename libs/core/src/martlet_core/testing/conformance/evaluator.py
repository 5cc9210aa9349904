"""The rules of ``martlet.evaluator.v1``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from martlet.common.v1 import job_pb2
from martlet.evaluator.v1 import evaluation_job_pb2 as pb
from martlet.evaluator.v1 import evaluation_service_pb2 as service_pb
from martlet.evaluator.v1 import evaluation_service_pb2_grpc as service_grpc

from martlet_core.testing.conformance.checks import check_list, expect_error, require
from martlet_core.testing.conformance.job_rules import rules_of_jobs
from martlet_core.testing.conformance.jobs import JobKind, Jobs, JobTarget
from martlet_core.testing.conformance.rules import Rule, option

_ROWS = 4


@dataclass(frozen=True)
class EvaluatorTarget(JobTarget):
    """An evaluator.

    Attributes:
        model: a model that answers behind its gateway.
        dataset: ``artifacts/{id}`` of rows with expected answers.
        suite: a suite that asks the model these rows.
    """

    model: str = option("smollm2-135m-instruct", "a model that answers behind the evaluator's gateway")
    dataset: str = option("", "artifacts/{id} of rows with expected answers")
    suite: str = option("exact_match", "a suite that asks the model these rows")


def _suite(name: str, **options: Any) -> pb.SuiteSpec:
    spec = pb.SuiteSpec(suite=name)
    spec.options.update(options)
    return spec


def _sound_spec(target: EvaluatorTarget) -> dict[str, Any]:
    return {
        "targets": [pb.EvaluationTarget(name="base", model=target.model)],
        "dataset": target.dataset,
        "suites": [pb.SuiteSpec(suite=target.suite)],
        "max_rows": _ROWS,
        "category_field": "",
    }


def _check_evaluated(target: EvaluatorTarget, job: pb.EvaluationJob, events: Sequence[job_pb2.JobEvent]) -> None:
    result = job.result
    for field in ("report_artifact", "records_artifact"):
        require(getattr(result, field).startswith("artifacts/"), f"{field} is {getattr(result, field)!r}")
    require(0 < result.rows_used <= _ROWS, f"rows_used is {result.rows_used}")
    require(result.rows_failed == 0, f"rows_failed is {result.rows_failed}")
    require([found.name for found in result.targets] == ["base"], f"the targets are {result.targets}")
    metrics = result.targets[0].metrics
    require(any(name.startswith(f"{target.suite}.") for name in metrics), f"the metrics are {sorted(metrics)}")
    if target.suite == "exact_match":
        accuracy = metrics["exact_match.accuracy"].value
        require(0 <= accuracy <= 1, f"exact_match.accuracy is {accuracy}")


EVALUATING = JobKind(
    noun="EvaluationJob",
    service="EvaluationService",
    service_messages=service_pb,
    stub=service_grpc.EvaluationServiceStub,
    job=pb.EvaluationJob,
    spec=pb.EvaluationSpec,
    sound_spec=_sound_spec,
    inputs={"dataset": "--dataset"},
    another={"seed": 12345},
    bad_fields=(
        ("targets", {"targets": []}),
        ("model", {"targets": [pb.EvaluationTarget(name="a")]}),
        ("name", {"targets": [pb.EvaluationTarget(name="a", model="m"), pb.EvaluationTarget(name="a", model="n")]}),
        ("base_url", {"targets": [pb.EvaluationTarget(model="m", engine=pb.TARGET_ENGINE_EXTERNAL)]}),
        ("base_url", {"targets": [pb.EvaluationTarget(model="m", base_url="http://127.0.0.1/v1")]}),
        ("dataset", {"dataset": "not a resource name"}),
        ("dataset", {"dataset": ""}),
        ("suites", {"suites": []}),
        ("suite", {"suites": [pb.SuiteSpec(suite="no-such-suite")]}),
        ("no_such_option", {"suites": [_suite("exact_match", no_such_option=True)]}),
        ("max_rows", {"max_rows": 0}),
        ("concurrency", {"concurrency": 0}),
        ("max_failed_rows", {"max_failed_rows": -1}),
        ("max_tokens", {"sampling": pb.SamplingSpec(max_tokens=0)}),
        ("temperature", {"sampling": pb.SamplingSpec(temperature=2.5)}),
        ("baseline", {"baseline": "no-such-target"}),
        ("priority", {"resources": pb.EvaluationResources(priority=10)}),
        ("max_attempts", {"resources": pb.EvaluationResources(max_attempts=0)}),
        ("seed", {"seed": -1}),
    ),
    unknown_inputs=(
        ("model", {"targets": [pb.EvaluationTarget(model="no-such-model-anywhere")]}),
        ("dataset", {"dataset": "artifacts/nosuchartifact0000"}),
    ),
    result_field="report_artifact",
    success="A sound job ends SUCCEEDED with a report, records, counts and the metrics of each target.",
    check_success=_check_evaluated,
)


async def suites_are_listed(jobs: Jobs) -> None:
    """ListEvaluationSuites gives suites with names of their own, a description and metrics, in pages."""

    async def page(size: int, token: str) -> tuple[Sequence[str], str]:
        request = service_pb.ListEvaluationSuitesRequest(page_size=size, page_token=token)
        stub: Any = service_grpc.EvaluationServiceStub(jobs.target.channel)
        answer = await stub.ListEvaluationSuites(request, **jobs.target.call_options)
        for suite in answer.suites:
            require(suite.description and suite.metrics, f"the suite is {suite}")
        return [suite.name for suite in answer.suites], answer.next_page_token

    names = await check_list("ListEvaluationSuites", page)
    require(jobs.target.suite in names, f"the suites are {names}, without {jobs.target.suite}")


async def addresses_must_be_allowed(jobs: Jobs) -> None:
    """An external address that the operator didn't allow is PERMISSION_DENIED: the evaluator stands inside the network."""
    inside = pb.EvaluationTarget(model="m", engine=pb.TARGET_ENGINE_EXTERNAL, base_url="http://169.254.169.254/v1")
    await expect_error("an address inside the network", jobs.create(targets=[inside]), "PERMISSION_DENIED")


async def missing_category_is_named(jobs: Jobs) -> None:
    """A category_field that the rows don't have is INVALID_ARGUMENT."""
    call = jobs.create(category_field="no-such-field")
    await expect_error("an unknown category_field", call, "INVALID_ARGUMENT")


#: All rules, in the order they are tried.
EVALUATOR_RULES: tuple[Rule, ...] = rules_of_jobs(
    EVALUATING, suites_are_listed, addresses_must_be_allowed, missing_category_is_named
)
