"""The model that a replica's operator gave it: it stays the replica's own, loaded or not, published or not."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, InvalidArgument, NotFound
from martlet_core.model_rules import ARTIFACT_PREFIX, parse_hub_id, serves_base
from martlet_core.model_tasks import ModelTask

from martlet_inference.hub import HubModels
from martlet_inference.model_source import ModelSource, unknown_model
from martlet_inference.settings import InferenceSettings


@dataclass(frozen=True)
class HomeModel:
    """A whole model that the settings bring along.

    Attributes:
        name: name it answers to; ``org/model@revision`` for hub models.
        directory: its files; None for a hub model.
    """

    name: str
    directory: Path | None = None


def home_model(settings: InferenceSettings) -> HomeModel | None:
    """The home model of the settings; None where they name a published model, or none.

    Raises:
        InvalidArgument: a directory without a name, or a hub id without its commit or with two of them.
        FailedPrecondition: the directory holds no model.
    """
    name = _full_name(settings)
    if settings.model_dir:
        directory = settings.model_dir.resolve()
        if not name:
            raise InvalidArgument(f"MARTLET_MODEL_DIR={directory}: name the model too, with MARTLET_MODEL.")
        if not (directory / "config.json").is_file():
            raise FailedPrecondition(
                f"MARTLET_MODEL_DIR={directory}: there is no config.json in it, so it is not a model directory."
            )
        return HomeModel(name, directory)
    if "/" not in name or name.startswith(ARTIFACT_PREFIX):
        return None
    hub = parse_hub_id(name)
    if hub is None:
        raise InvalidArgument(
            f"MARTLET_MODEL={name} is neither a model's name nor a hub id; a local directory goes into MARTLET_MODEL_DIR."
        )
    if not hub.revision:
        raise InvalidArgument(
            f"MARTLET_MODEL={name} is a hub id: pin its commit with MARTLET_MODEL_REVISION, or write {name}@<commit>.",
            reason="REVISION_REQUIRED",
        )
    return HomeModel(name)


def _full_name(settings: InferenceSettings) -> str:
    name, revision = settings.model, settings.model_revision
    hub = parse_hub_id(name)
    if not revision or hub is None or hub.revision == revision:
        return name
    if hub.revision:
        raise InvalidArgument(f"MARTLET_MODEL={name} and MARTLET_MODEL_REVISION={revision} contradict each other.")
    return f"{name}@{revision}"


class HomeSource:
    """Another source, and before it the home model.

    Args:
        home: the home model.
        others: where all other models come from.
        hub: where the home model comes from if it has no directory.
    """

    def __init__(self, home: HomeModel, others: ModelSource, hub: HubModels) -> None:
        self._home = home
        self._others = others
        self._hub = hub

    async def resolve(self, name: str, tenant: str) -> PublishedModel:
        if serves_base(self._home.name, name):
            return PublishedModel(self._home.name, "base")
        try:
            return await self._others.resolve(name, tenant)
        except NotFound as exc:
            if get_close_matches(name, [self._home.name], cutoff=0.5):
                known = [self._home.name, *filter(None, exc.metadata.get("close_matches", "").split(","))]
                raise unknown_model(name, {**exc.metadata, "close_matches": ",".join(known)}) from exc
            raise

    async def files(self, model: PublishedModel) -> Path:
        if model.name != self._home.name:
            return await self._others.files(model)
        return self._home.directory or await self._hub.files(self._home.name)

    async def task(self, model: PublishedModel) -> ModelTask | None:
        return None if model.name == self._home.name else await self._others.task(model)

    def guard(self, in_use: Callable[[], Collection[str]]) -> None:
        self._others.guard(in_use)
