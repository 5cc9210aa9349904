"""Who needs an artifact: jobs in every state that isn't final, on every page."""

from __future__ import annotations

from typing import Any

import pytest
from martlet.common.v1 import job_pb2
from martlet.evaluator.v1 import evaluation_job_pb2
from martlet.quantizer.v1 import quantization_job_pb2
from martlet.trainer.v1 import merge_job_pb2, training_job_pb2
from martlet_core.errors import FailedPrecondition
from martlet_core.models import ObjectModelRegistry
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_gateway.clients import Stages
from martlet_gateway.job_kinds import JOB_KINDS
from martlet_gateway.usage import ArtifactUse

FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
STATES = [name.removeprefix("JOB_STATE_") for name in job_pb2.JobState.keys() if not name.endswith("UNSPECIFIED")]  # noqa: SIM118


class TwoPages:
    """A stage whose lists have two pages; what needs the artifact is on the second."""

    deployed = True

    def __init__(self, state: str) -> None:
        number = job_pb2.JobState.Value(f"JOB_STATE_{state}")
        suites = [{"suite": "lm_eval", "options": {"data": ["artifacts/harness-rows"]}}]
        self.jobs: dict[str, list[Any]] = {
            "training": [
                training_job_pb2.TrainingJob(
                    name=f"trainingJobs/{name}", state=number, spec={"training_dataset": dataset}
                )
                for name, dataset in (("a", "artifacts/other"), ("b", "artifacts/rows"))
            ],
            "merge": [
                merge_job_pb2.MergeJob(name=f"mergeJobs/{name}", state=number, spec={"adapter": adapter})
                for name, adapter in (("a", "artifacts/other"), ("b", "artifacts/adapter"))
            ],
            "quantization": [
                quantization_job_pb2.QuantizationJob(
                    name=f"quantizationJobs/{name}", state=number, spec={"calibration": {"dataset": dataset}}
                )
                for name, dataset in (("a", "artifacts/other"), ("b", "artifacts/calibration"))
            ],
            "evaluation": [
                evaluation_job_pb2.EvaluationJob(name="evaluationJobs/a", state=number),
                evaluation_job_pb2.EvaluationJob(name="evaluationJobs/b", state=number, spec={"suites": suites}),
            ],
        }

    async def call(self, service: str, method: str, request: Any) -> Any:
        [kind] = [kind for kind in JOB_KINDS if kind.service == service]
        assert method == f"List{kind.noun}s"
        found = [job for job in self.jobs[service] if job.state in request.states]
        place = int(request.page_token or 0)
        token = str(place + 1) if place + 1 < len(found) else ""
        response = getattr(kind.messages, f"List{kind.noun}sResponse")
        return response(**{kind.jobs: found[place : place + 1], "next_page_token": token})


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    ("artifact", "user"),
    [
        ("rows", "trainingJobs/b"),
        ("adapter", "mergeJobs/b"),
        ("calibration", "quantizationJobs/b"),
        ("harness-rows", "evaluationJobs/b"),
    ],
)
async def test_jobs_that_are_not_over_keep_what_they_need(state: str, artifact: str, user: str) -> None:
    stage: Any = TwoPages(state)
    use = ArtifactUse(Stages(stage, stage, stage), ObjectModelRegistry(MemoryObjectStore()), MemoryJobStore())
    if state in FINAL:
        await use.refuse_if_needed(artifact)
        return
    with pytest.raises(FailedPrecondition, match=user) as caught:
        await use.refuse_if_needed(artifact)
    assert caught.value.reason == "ARTIFACT_IN_USE"
    await use.refuse_if_needed("nobodys")
