"""The catalogue of base models, and what a reference to a base model means. Imports no ML library."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from martlet_core.errors import InvalidArgument, NotFound, PermissionDenied
from martlet_core.model_rules import ARTIFACT_PREFIX, PATH_PREFIX, PUBLISHED_PREFIX, parse_hub_id

#: Written last into a prepared directory; a directory without it isn't one.
MARKER = "martlet-base-model.txt"
#: Names of base models: of the catalogue, and those that tenants give.
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class BaseModel:
    """A base model known by name.

    Attributes:
        name: what users write as ``base_model``.
        description: for people.
        parameter_count: parameters, counted.
        context_length: longest context in tokens.
        license: SPDX id of the weights' licence.
        source: where the files come from; see catalog.toml.
    """

    name: str
    description: str
    parameter_count: int
    context_length: int
    license: str
    source: Mapping[str, str]

    @property
    def source_text(self) -> str:
        """The source in a few words."""
        if self.source["kind"] == "package":
            return f"PyPI package {self.source['package']} {self.source['version']}"
        return f"hub repository {self.source['repository']}@{self.source['revision']}"


@dataclass(frozen=True)
class Reference:
    """What a job's ``base_model`` means.

    Attributes:
        kind: ``catalog`` (a registered name), ``hub`` (``org/model[@revision]``), ``artifact``, ``published`` (a
            fine-tuned model's name) or ``path`` (a local directory).
        value: the name, hub id, artifact id, or path.
        chat_template: Jinja that takes the place of the model's own; empty for none.
    """

    kind: Literal["catalog", "hub", "artifact", "published", "path"]
    value: str
    chat_template: str = ""


@cache
def catalog() -> Mapping[str, BaseModel]:
    """The base models by name."""
    text = resources.files("martlet_inputs.base_models").joinpath("catalog.toml").read_text(encoding="utf-8")
    return {name: BaseModel(name=name, **fields) for name, fields in tomllib.loads(text).items()}


def find(name: str) -> BaseModel:
    """The base model of a registered name.

    Raises:
        NotFound: there is none; ``metadata["close_matches"]`` names similar ones.
    """
    known = catalog()
    if name in known:
        return known[name]
    close = [other for other in known if name and (name in other or other in name)][:3]
    close = close or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known names: {', '.join(sorted(known))}."
    raise NotFound(
        f"base_model: {name!r} is not a registered base model; {hint} A hub id is written org/model@revision.",
        reason="BASE_MODEL_NOT_FOUND",
        metadata={"name": name, "close_matches": ",".join(close)},
    )


def is_prepared(directory: Path) -> bool:
    """True if the directory holds a model that ``prepare`` finished."""
    return (directory / MARKER).is_file()


def parse_reference(base_model: str, allowed_roots: tuple[Path, ...] = ()) -> Reference:
    """What ``base_model`` means; whether artifacts and published names exist is for the caller to find out.

    Args:
        base_model: as the user wrote it.
        allowed_roots: directories that ``file://`` paths may lie in.

    Raises:
        NotFound: a name that isn't registered.
        InvalidArgument: a malformed path.
        PermissionDenied: a path outside the allowed roots.
    """
    if base_model.startswith(ARTIFACT_PREFIX):
        return Reference("artifact", base_model.removeprefix(ARTIFACT_PREFIX))
    if base_model.startswith(PUBLISHED_PREFIX):
        return Reference("published", base_model)
    if base_model.startswith(PATH_PREFIX):
        return Reference("path", str(_checked_path(base_model, allowed_roots)))
    if parse_hub_id(base_model):
        return Reference("hub", base_model)
    return Reference("catalog", find(base_model).name)


def _checked_path(url: str, allowed_roots: tuple[Path, ...]) -> Path:
    parts = urlsplit(url)
    if parts.netloc or not parts.path.startswith("/"):
        raise InvalidArgument.field("base_model", f"is {url!r}; write a local path as file:///absolute/path")
    path = Path(unquote(parts.path)).resolve()  # decoded, links followed: what is checked is what is opened
    if not any(path.is_relative_to(root.resolve()) for root in allowed_roots):
        raise PermissionDenied(
            f"base_model: {url!r} is outside the directories that the operator allowed (MARTLET_MODEL_ROOTS).",
            reason="PATH_NOT_ALLOWED",
        )
    if not (path / "config.json").is_file():
        raise NotFound(f"base_model: no model directory with a config.json at {url!r}.", reason="BASE_MODEL_NOT_FOUND")
    return path
