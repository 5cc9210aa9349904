"""Where the files behind a model name come from: the model registry and the artifact store."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Protocol

from martlet_core.artifacts.types import ArtifactStore, ModelRegistry, PublishedModel
from martlet_core.errors import FailedPrecondition, NotFound


class ModelSource(Protocol):
    """Resolves names and brings files."""

    async def resolve(self, name: str, tenant: str) -> PublishedModel:
        """The model of a name that the tenant may use. NotFound otherwise, with ``close_matches`` in the metadata."""
        ...

    async def files(self, model: PublishedModel) -> Path:
        """A local directory with the model's files, downloaded at most once."""
        ...


class RegistrySource:
    """Names from the model registry, files from the artifact store.

    Args:
        models: the registry.
        artifacts: the store.
        directory: where downloaded models lie, one directory per artifact; kept across restarts, owned by one process.
    """

    def __init__(self, models: ModelRegistry, artifacts: ArtifactStore, directory: Path) -> None:
        self._models = models
        self._artifacts = artifacts
        self._directory = directory.resolve()
        self._downloads: dict[str, asyncio.Task[Path]] = {}

    async def resolve(self, name: str, tenant: str) -> PublishedModel:
        try:
            return await asyncio.to_thread(self._models.get, name, tenant=tenant)
        except NotFound as exc:
            raise _unknown_model(name, exc.metadata) from exc

    async def files(self, model: PublishedModel) -> Path:
        if not model.artifact_id:
            raise FailedPrecondition(
                f"The model {model.name!r} was published without files, so it can't be downloaded.",
                reason="MODEL_HAS_NO_FILES",
            )
        target = self._directory / model.artifact_id
        if target.is_dir():
            return target
        task = self._downloads.get(model.artifact_id)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self._download, model.artifact_id, target))
            self._downloads[model.artifact_id] = task
            task.add_done_callback(lambda _: self._downloads.pop(model.artifact_id, None))
        return await asyncio.shield(task)  # who gives up waiting doesn't take the download from the others

    def _download(self, artifact_id: str, target: Path) -> Path:
        partial = target.with_name(f".{artifact_id}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            self._artifacts.download(artifact_id, partial)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return target


class FixedSource:
    """Knows one base model and no registry: for benchmarks and for serving a model without the rest of the platform."""

    def __init__(self, model_name: str) -> None:
        self._model = PublishedModel(name=model_name, kind="base")

    async def resolve(self, name: str, tenant: str) -> PublishedModel:
        if name == self._model.name:
            return self._model
        raise _unknown_model(name, {"close_matches": self._model.name})

    async def files(self, model: PublishedModel) -> Path:
        raise FailedPrecondition(
            f"The model {model.name!r} has no files here: this replica runs without a model registry.",
            reason="MODEL_HAS_NO_FILES",
        )


def _unknown_model(name: str, metadata: dict[str, str]) -> NotFound:
    message = f"The model {name!r} does not exist or you do not have access to it."
    close = [match for match in metadata.get("close_matches", "").split(",") if match]
    if close:
        message += f" Close matches: {', '.join(close)}."
    return NotFound(message, reason="MODEL_NOT_FOUND", metadata=metadata)
