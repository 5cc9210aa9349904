"""Who still needs an artifact: asked before one is deleted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message
from martlet.common.v1 import job_pb2
from martlet_core.artifacts.types import ModelRegistry
from martlet_core.errors import FailedPrecondition
from martlet_core.jobs import JobState, JobStore
from martlet_core.rpc.context import call_context

from martlet_gateway.clients import Stages
from martlet_gateway.job_kinds import JOB_KINDS, JobKind
from martlet_gateway.runs.records import STAGE, run_id

_OVER = {job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED}
_ACTIVE: Any = tuple(state for state in job_pb2.JobState.values() if state and state not in _OVER)
_NOT_OVER = "which isn't over. Cancel it first, or wait for its end"
_PAGE = 1000


class ArtifactUse:
    """Finds the jobs, runs and published models of the calling tenant that need an artifact."""

    def __init__(self, stages: Stages, models: ModelRegistry, jobs: JobStore) -> None:
        self._stages = stages
        self._models = models
        self._jobs = jobs

    async def refuse_if_needed(self, artifact_id: str) -> None:
        """FailedPrecondition if a job or a run that isn't over, or a published model, needs the artifact."""
        name = f"artifacts/{artifact_id}"
        users = [await self._job_user(kind, name) for kind in JOB_KINDS if kind.client(self._stages).deployed]
        for user in (*users, await self._run_user(name), await self._model_user(artifact_id)):
            if user:
                raise FailedPrecondition(f"{name} is needed by {user}.", reason="ARTIFACT_IN_USE")

    async def _job_user(self, kind: JobKind, name: str) -> str | None:
        token = ""
        while True:
            request = kind.request("List", plural=True, page_size=_PAGE, page_token=token, states=_ACTIVE)
            page = await kind.call(self._stages, f"List{kind.noun}s", request)
            for job in getattr(page, kind.jobs):
                if _names(job.spec, name):
                    return f"{job.name}, {_NOT_OVER}"
            token = page.next_page_token
            if not token:
                return None

    async def _run_user(self, name: str) -> str | None:
        """A run that isn't over and names the artifact, in its definition or among what its steps made."""
        tenant, states, token = call_context().tenant, [s for s in JobState if not s.is_final], ""
        while True:
            page = await asyncio.to_thread(
                self._jobs.list, stage=STAGE, tenant=tenant, states=states, page_size=_PAGE, page_token=token
            )
            for job in page.jobs:
                if f'"{name}"' in json.dumps([job.spec, job.result]):
                    return f"runs/{run_id(job)}, {_NOT_OVER}"
            token = page.next_page_token
            if not token:
                return None

    async def _model_user(self, artifact_id: str) -> str | None:
        models = await asyncio.to_thread(self._models.list, tenant=call_context().tenant)
        users = [model.name for model in models if model.artifact_id == artifact_id]
        return f"the model `{users[0]}`. Delete the model first" if users else None


def _names(spec: Message, name: str) -> bool:
    """Whether a spec names the artifact in any field, however deep."""
    for field, value in spec.ListFields():
        values = value.values() if isinstance(value, Mapping) else value if field.is_repeated else (value,)
        for item in values:
            if item == name or (isinstance(item, Message) and _names(item, name)):
                return True
    return False
