"""ObjectModelRegistry: published model names, one small object each."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from difflib import get_close_matches
from time import time
from urllib.parse import quote, unquote

from martlet_core.artifacts.types import ObjectStore, PublishedModel
from martlet_core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound

#: Names may look like hub ids (``org/name``) and ``ft:base:tenant:suffix:id``.
MODEL_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}")
KINDS = ("base", "adapter", "whole")

_PREFIX = "models/"
_CLOSE_MATCHES = 3
_READERS = 8


class ObjectModelRegistry:
    """Published model names in an ObjectStore. Thread-safe."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def publish(self, model: PublishedModel) -> PublishedModel:
        """Make a name known and return what is stored; the same again is fine.

        Raises:
            AlreadyExists: the name means something else already.
            InvalidArgument: bad name or kind.
        """
        if not MODEL_NAME_PATTERN.fullmatch(model.name):
            raise InvalidArgument.field("name", f"{model.name[:100]!r} doesn't match {MODEL_NAME_PATTERN.pattern}.")
        if model.kind not in KINDS:
            raise InvalidArgument.field("kind", f"{model.kind!r} is none of {', '.join(KINDS)}.")
        model = replace(model, create_time=model.create_time or time())
        data = json.dumps({**asdict(model), "metadata": dict(model.metadata)}, ensure_ascii=False).encode()
        if self._objects.put_if_absent(_key(model.name), data):
            return model
        existing = self._read(_key(model.name))
        if _meaning(existing) != _meaning(model):
            raise AlreadyExists(
                f"The model name {model.name} is taken by another model.",
                reason="MODEL_EXISTS",
                metadata={"model": model.name},
            )
        return existing

    def get(self, name: str, *, tenant: str | None = None) -> PublishedModel:
        """Resolve a name.

        Raises:
            NotFound: no such name, or another tenant's; ``metadata["close_matches"]`` has similar names,
                comma-separated, among those that ``tenant`` may use.
        """
        model = self._find(name)
        if model is None or not _may_use(model, tenant):
            raise self._not_found(name, tenant)
        return model

    def list(self, *, tenant: str) -> Sequence[PublishedModel]:
        """Models the tenant may use, newest first."""
        return [model for model in self._all() if _may_use(model, tenant)]

    def delete(self, name: str, *, tenant: str) -> None:
        """Forget a name; its artifact stays.

        Raises:
            NotFound: no such name, or not this tenant's own. A shared model needs ``tenant=""``.
        """
        model = self._find(name)
        if model is None or model.tenant != tenant:
            raise self._not_found(name, tenant)
        self._objects.delete(_key(name))

    def _find(self, name: str) -> PublishedModel | None:
        if not MODEL_NAME_PATTERN.fullmatch(name):
            return None
        try:
            return self._read(_key(name))
        except NotFound:
            return None

    def _read(self, key: str) -> PublishedModel:
        try:
            return PublishedModel(**json.loads(self._objects.get(key)))
        except (ValueError, TypeError) as error:
            raise FailedPrecondition(f"The record {self._objects.uri(key)} is damaged: {error}.") from error

    def _all(self) -> list[PublishedModel]:
        keys: list[str] = []
        while page := self._objects.list(_PREFIX, after=keys[-1] if keys else "", limit=1000):
            keys.extend(page)
        with ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(lambda key: self._find(_name(key)), keys)  # one may be deleted meanwhile
            models = [model for model in found if model is not None]
        return sorted(models, key=lambda model: model.create_time, reverse=True)

    def _not_found(self, name: str, tenant: str | None) -> NotFound:
        names = [model.name for model in self._all() if _may_use(model, tenant)]
        close = get_close_matches(name[:255], names, n=_CLOSE_MATCHES, cutoff=0.5)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        return NotFound(
            f"There is no model {name[:255]!r}.{hint}",
            reason="MODEL_NOT_FOUND",
            metadata={"model": name[:255], "close_matches": ",".join(close)},
        )


def _key(name: str) -> str:
    # Percent signs in keys are decoded once too often by some stores: "=" takes their place, and can't be in a name.
    return f"{_PREFIX}{quote(name, safe='').replace('%', '=')}.json"


def _name(key: str) -> str:
    return unquote(key.removeprefix(_PREFIX).removesuffix(".json").replace("=", "%"))


def _may_use(model: PublishedModel, tenant: str | None) -> bool:
    return tenant is None or model.tenant in ("", tenant)


def _meaning(model: PublishedModel) -> tuple[str, str, str, str]:
    return model.kind, model.tenant, model.artifact_id, model.base_model
