"""Who still needs an artifact: asked before one is deleted."""

from __future__ import annotations

import asyncio
from typing import Any

from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import merge_service_pb2, training_service_pb2
from martlet_core.artifacts.types import ModelRegistry
from martlet_core.errors import FailedPrecondition
from martlet_core.rpc.context import call_context

from martlet_gateway.clients import TrainerClient

_OVER = {job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED}
_ACTIVE: Any = tuple(state for state in job_pb2.JobState.values() if state and state not in _OVER)
_NOT_OVER = "which isn't over. Cancel it first, or wait for its end"
_PAGE = 1000


class ArtifactUse:
    """Finds the jobs and published models of the calling tenant that need an artifact."""

    def __init__(self, trainer: TrainerClient, models: ModelRegistry) -> None:
        self._trainer = trainer
        self._models = models

    async def refuse_if_needed(self, artifact_id: str) -> None:
        """FailedPrecondition if a job that isn't over, or a published model, needs the artifact."""
        name = f"artifacts/{artifact_id}"
        for user in (
            await self._training_user(name),
            await self._merge_user(name),
            await self._model_user(artifact_id),
        ):
            if user:
                raise FailedPrecondition(f"{name} is needed by {user}.", reason="ARTIFACT_IN_USE")

    async def _training_user(self, name: str) -> str | None:
        token = ""
        while True:
            request = training_service_pb2.ListTrainingJobsRequest(page_size=_PAGE, page_token=token, states=_ACTIVE)
            page = await self._trainer.training("ListTrainingJobs", request)
            for job in page.training_jobs:
                if name in (job.spec.training_dataset, job.spec.validation_dataset, job.spec.base_model):
                    return f"{job.name}, {_NOT_OVER}"
            token = page.next_page_token
            if not token:
                return None

    async def _merge_user(self, name: str) -> str | None:
        token = ""
        while True:
            request = merge_service_pb2.ListMergeJobsRequest(page_size=_PAGE, page_token=token, states=_ACTIVE)
            page = await self._trainer.merging("ListMergeJobs", request)
            for job in page.merge_jobs:
                if job.spec.adapter == name:
                    return f"{job.name}, {_NOT_OVER}"
            token = page.next_page_token
            if not token:
                return None

    async def _model_user(self, artifact_id: str) -> str | None:
        models = await asyncio.to_thread(self._models.list, tenant=call_context().tenant)
        users = [model.name for model in models if model.artifact_id == artifact_id]
        return f"the model `{users[0]}`. Delete the model first" if users else None
