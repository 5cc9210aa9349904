"""Where the files behind a model's name come from: the model registry, the artifact store, the hub."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from martlet_core.artifacts.types import WHOLE_MODEL_KINDS, ArtifactStore, ModelRegistry, PublishedModel
from martlet_core.errors import FailedPrecondition, NotFound
from martlet_core.model_rules import ARTIFACT_PREFIX, CHAT_TEMPLATE, PATH_PREFIX, REGISTERED_SOURCE, parse_hub_id
from martlet_core.model_tasks import ModelTask, told_task

from martlet_inference.hub import HubModels
from martlet_inference.model_cache import ModelCache


class ModelSource(Protocol):
    """Resolves names and brings files."""

    async def resolve(self, name: str, tenant: str) -> PublishedModel:
        """The model of a name that the tenant may use. NotFound otherwise, with ``close_matches`` in the metadata."""
        ...

    async def files(self, model: PublishedModel) -> Path:
        """A local directory with the model's files, downloaded at most once."""
        ...

    async def task(self, model: PublishedModel) -> ModelTask | None:
        """What the model was made for, as far as its artifact says so."""
        ...

    def guard(self, in_use: Callable[[], Collection[str]]) -> None:
        """Keep the files of the artifacts that ``in_use`` names whenever room must be made."""
        ...


class RegistrySource:
    """Published names from the model registry, ``artifacts/<id>`` from the artifact store, ``org/model@revision`` from
    the hub.

    Args:
        models: the registry.
        artifacts: the store.
        cache: where models of the store lie.
        hub: brings models of the hub.
    """

    def __init__(self, models: ModelRegistry, artifacts: ArtifactStore, cache: ModelCache, hub: HubModels) -> None:
        self._models = models
        self._artifacts = artifacts
        self._cache = cache
        self._hub = hub

    async def resolve(self, name: str, tenant: str) -> PublishedModel:
        """See ``ModelSource.resolve``.

        Raises:
            NotFound: unknown to the tenant, or a hub id without its revision.
            FailedPrecondition: a path (``MODEL_IS_A_PATH``), or an artifact that is no whole model.
        """
        if name.startswith(PATH_PREFIX):
            raise _path_refused(name)
        if name.startswith(ARTIFACT_PREFIX):
            return await asyncio.to_thread(self._artifact, name, tenant)
        try:
            return await asyncio.to_thread(self._models.get, name, tenant=tenant)
        except NotFound as exc:
            hub = parse_hub_id(name)
            if hub and hub.revision:
                return PublishedModel(name, "base")
            raise unknown_model(name, exc.metadata) from exc

    async def files(self, model: PublishedModel) -> Path:
        if model.artifact_id:
            return await self._cache.files(model.artifact_id, self._artifacts)
        name = str(model.metadata.get(REGISTERED_SOURCE, model.name))
        if parse_hub_id(name):
            return await self._hub.files(name, str(model.metadata.get(CHAT_TEMPLATE, "")))
        raise FailedPrecondition(
            f"The model {model.name!r} was published without files, so it can't be downloaded.",
            reason="MODEL_HAS_NO_FILES",
        )

    async def task(self, model: PublishedModel) -> ModelTask | None:
        if not model.artifact_id:
            return None
        artifact = await asyncio.to_thread(self._artifacts.get, model.artifact_id)
        return told_task(artifact.metadata)

    def guard(self, in_use: Callable[[], Collection[str]]) -> None:
        self._cache.guard(in_use)

    def _artifact(self, name: str, tenant: str) -> PublishedModel:
        try:
            artifact = self._artifacts.get(name.removeprefix(ARTIFACT_PREFIX), tenant=tenant)
        except NotFound as exc:
            raise unknown_model(name, {}) from exc
        if artifact.kind not in WHOLE_MODEL_KINDS:
            raise FailedPrecondition(
                f"{name} is of kind {artifact.kind}; an engine is started with a whole model. Adapters are used by the "
                "name that they were published under.",
                reason="NOT_A_WHOLE_MODEL",
            )
        return PublishedModel(name, "whole", artifact.tenant, artifact.id, source_job=artifact.source_job)


class FixedSource:
    """Knows one base model and no registry: for benchmarks and for serving a model without the rest of the platform."""

    def __init__(self, model_name: str) -> None:
        self._model = PublishedModel(name=model_name, kind="base")

    async def resolve(self, name: str, tenant: str) -> PublishedModel:
        if name == self._model.name:
            return self._model
        raise unknown_model(name, {"close_matches": self._model.name})

    async def files(self, model: PublishedModel) -> Path:
        raise FailedPrecondition(
            f"The model {model.name!r} has no files here: this replica runs without a model registry.",
            reason="MODEL_HAS_NO_FILES",
        )

    async def task(self, model: PublishedModel) -> ModelTask | None:
        return None

    def guard(self, in_use: Callable[[], Collection[str]]) -> None:
        """It keeps nothing."""


def unknown_model(name: str, metadata: Mapping[str, str]) -> NotFound:
    """The error for a name that nothing answers to; ``metadata["close_matches"]`` has similar ones, comma-separated."""
    message = f"The model {name!r} does not exist or you do not have access to it."
    close = [match for match in metadata.get("close_matches", "").split(",") if match]
    if close:
        message += f" Close matches: {', '.join(close)}."
    if parse_hub_id(name):
        message += f" A model of the hub is named with its revision: {name}@<commit>."
    return NotFound(message, reason="MODEL_NOT_FOUND", metadata=dict(metadata))


def _path_refused(name: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{name} is a directory of the trainer's machine, which replicas don't know. Merge adapters on it (`martlet merge "
        f"ADAPTER`), or start a replica with MARTLET_MODEL={name} and MARTLET_MODEL_DIR set to that directory.",
        reason="MODEL_IS_A_PATH",
        metadata={"model": name},
    )
