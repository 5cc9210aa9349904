"""Earlier results that may stand for a step: same tenant, same kind, same specification, same inputs by their content.

    runs/reuse/<tenant>/<fingerprint>.json    the job that did the same work

Artifacts count by the hashes of their files, published models by their artifacts. A result counts only while its job and
what it made are still there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from martlet_core.artifacts.types import Artifact, ArtifactStore, ModelRegistry, ObjectStore
from martlet_core.errors import MartletError, NotFound
from martlet_core.model_rules import ARTIFACT_PREFIX, PUBLISHED_PREFIX

from martlet_gateway.runs.status import StepState, StepStatus
from martlet_gateway.runs.steps.base import JobStep, StepPlace, StepWorld

log = logging.getLogger(__name__)

#: Fields that say how a job is scheduled, and nothing about its result.
_IRRELEVANT = ("resources", "display_name", "labels")


class ReuseIndex:
    """Finds and notes results.

    Args:
        world: asks stages for jobs.
        objects, artifacts: where the index and the artifacts are.
    """

    def __init__(self, world: StepWorld, objects: ObjectStore, artifacts: ArtifactStore) -> None:
        self._world = world
        self._objects = objects
        self._artifacts = artifacts

    async def find(self, kind: JobStep, place: StepPlace, options: Mapping[str, Any]) -> StepStatus | None:
        """The status of the same work done before; None if there is none that still counts."""
        try:
            key = await asyncio.to_thread(self._key, kind.kind, place.tenant, options)
            noted = json.loads(await asyncio.to_thread(self._objects.get, key)) if key else None
            if noted is None:
                return None
            status = await kind.look(self._world, noted["job"])
            if status.state is not StepState.SUCCEEDED:
                return None
            await asyncio.to_thread(self._check_outputs, place.tenant, status)
        except NotFound:
            return None
        return replace(
            status, reused=True, start_time=time.time(), end_time=time.time(), progress={}, note=f"done by {status.job}"
        )

    async def note(self, kind: JobStep, place: StepPlace, options: Mapping[str, Any], status: StepStatus) -> None:
        """Remember a result; a store that doesn't answer costs the memory of it and nothing else."""
        if status.reused:
            return
        try:
            key = await asyncio.to_thread(self._key, kind.kind, place.tenant, options)
            if key:
                data = json.dumps({"job": status.job, "run": place.run, "step": place.step}).encode()
                await asyncio.to_thread(self._objects.put, key, data)
        except MartletError as error:
            log.warning("The result of %s can't be remembered for reuse: %s", status.job, error)

    def _key(self, kind: str, tenant: str, options: Mapping[str, Any]) -> str | None:
        """Key of the work; None for work that depends on what isn't ours."""
        relevant = {name: value for name, value in options.items() if name not in _IRRELEVANT}
        if "base_url" in json.dumps(relevant):
            return None  # an external endpoint may be another one by now
        content = [kind, _by_content(relevant, tenant, self._artifacts, self._world.models)]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return f"runs/reuse/{quote(tenant, safe='').replace('%', '=')}/{hashlib.sha256(text.encode()).hexdigest()}.json"

    def _check_outputs(self, tenant: str, status: StepStatus) -> None:
        """NotFound if something that the job made is gone."""
        for value in status.outputs.values():
            if value.startswith(ARTIFACT_PREFIX):
                self._artifacts.get(value.removeprefix(ARTIFACT_PREFIX), tenant=tenant)
            elif value.startswith(PUBLISHED_PREFIX):
                self._world.models.get(value, tenant=tenant)


def content_hash(artifact: Artifact) -> str:
    """What an artifact's files are, whenever and by whomever it was stored."""
    files = [[file.path, file.sha256] for file in artifact.files]
    return hashlib.sha256(json.dumps([artifact.kind, files]).encode()).hexdigest()


def _by_content(value: Any, tenant: str, artifacts: ArtifactStore, models: ModelRegistry) -> Any:
    """A value in which names of artifacts and published models are replaced by what they hold."""
    if isinstance(value, dict):
        return {key: _by_content(item, tenant, artifacts, models) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_by_content(item, tenant, artifacts, models) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith(PUBLISHED_PREFIX):
        model = models.get(value, tenant=tenant)
        if not model.artifact_id:
            return value
        value = ARTIFACT_PREFIX + model.artifact_id
    if value.startswith(ARTIFACT_PREFIX):
        return "sha256:" + content_hash(artifacts.get(value.removeprefix(ARTIFACT_PREFIX), tenant=tenant))
    return value
