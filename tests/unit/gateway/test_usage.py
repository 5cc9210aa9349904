"""Who needs an artifact: jobs in every state that isn't final, on every page."""

from __future__ import annotations

from typing import Any

import pytest
from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import merge_job_pb2, merge_service_pb2, training_job_pb2, training_service_pb2
from martlet_core.errors import FailedPrecondition
from martlet_core.models import ObjectModelRegistry
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_gateway.usage import ArtifactUse

FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
STATES = [name.removeprefix("JOB_STATE_") for name in job_pb2.JobState.keys() if not name.endswith("UNSPECIFIED")]  # noqa: SIM118


class TwoPages:
    """A trainer whose lists have two pages; what needs the artifact is on the second."""

    def __init__(self, state: str) -> None:
        number = job_pb2.JobState.Value(f"JOB_STATE_{state}")
        self.trainings = [
            training_job_pb2.TrainingJob(name=f"trainingJobs/{name}", state=number, spec={"training_dataset": dataset})
            for name, dataset in (("a", "artifacts/other"), ("b", "artifacts/rows"))
        ]
        self.merges = [
            merge_job_pb2.MergeJob(name=f"mergeJobs/{name}", state=number, spec={"adapter": adapter})
            for name, adapter in (("a", "artifacts/other"), ("b", "artifacts/adapter"))
        ]

    def _page(self, jobs: list[Any], request: Any) -> tuple[list[Any], str]:
        found = [job for job in jobs if job.state in request.states]
        place = int(request.page_token or 0)
        return found[place : place + 1], str(place + 1) if place + 1 < len(found) else ""

    async def training(self, method: str, request: Any) -> Any:
        jobs, token = self._page(self.trainings, request)
        return training_service_pb2.ListTrainingJobsResponse(training_jobs=jobs, next_page_token=token)

    async def merging(self, method: str, request: Any) -> Any:
        jobs, token = self._page(self.merges, request)
        return merge_service_pb2.ListMergeJobsResponse(merge_jobs=jobs, next_page_token=token)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("artifact", "user"), [("rows", "trainingJobs/b"), ("adapter", "mergeJobs/b")])
async def test_jobs_that_are_not_over_keep_what_they_need(state: str, artifact: str, user: str) -> None:
    trainer: Any = TwoPages(state)
    use = ArtifactUse(trainer, ObjectModelRegistry(MemoryObjectStore()))
    if state in FINAL:
        await use.refuse_if_needed(artifact)
        return
    with pytest.raises(FailedPrecondition, match=user) as caught:
        await use.refuse_if_needed(artifact)
    assert caught.value.reason == "ARTIFACT_IN_USE"
    await use.refuse_if_needed("nobodys")
