"""What a model name means, and to whom: published models and aliases from the store, base models from replicas and trainer."""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from martlet.trainer.v1 import training_service_pb2
from martlet_core.artifacts.types import ModelRegistry, PublishedModel
from martlet_core.errors import AlreadyExists, MartletError, NotFound
from martlet_core.model_rules import ARTIFACT_PREFIX, PUBLISHED_PREFIX, REGISTERED_SOURCE

from martlet_gateway.aliases import Alias, AliasStore, check_name
from martlet_gateway.clients import StageClient
from martlet_gateway.lookups import Lookups, LookupThreads
from martlet_gateway.replicas import ReplicaRegistry

log = logging.getLogger(__name__)

_BASE_MODELS_SECONDS = 30.0
_STALE_SECONDS = 300.0
#: How long a moved alias may still mean what it did, at gateways that didn't move it.
_ALIAS_SECONDS, _NO_ALIAS_SECONDS = 5.0, 2.0
#: Forms of names that belong to a tenant: that a replica serves one makes it nobody else's.
_OWNED = (PUBLISHED_PREFIX, ARTIFACT_PREFIX)


@dataclass(frozen=True, slots=True)
class KnownBase:
    """A base model that the trainer knows by name."""

    name: str
    source: str
    parameter_count: int
    context_length: int
    license: str


class ModelNames:
    """Resolves names for a tenant. A name that was resolved is believed for ``cache_seconds``, or up to five minutes while
    the store doesn't answer; one that wasn't is asked for again, since it may be published any moment.

    Args:
        registry: the published models.
        replicas: what is being served.
        trainer: knows the base models by name; may be down.
        threads: where the store is asked for a name.
        alias_store: the names that move.
        cache_seconds: how long an answer is believed.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        replicas: ReplicaRegistry,
        trainer: StageClient,
        threads: LookupThreads,
        alias_store: AliasStore,
        *,
        cache_seconds: float = 15.0,
    ) -> None:
        self._registry = registry
        self._replicas = replicas
        self._trainer = trainer
        self._threads = threads
        self._lookups: Lookups[PublishedModel] = Lookups(
            fresh_seconds=cache_seconds, absent_seconds=0.0, stale_seconds=_STALE_SECONDS
        )
        self._alias_store = alias_store
        self._targets: Lookups[str] = Lookups(
            fresh_seconds=min(cache_seconds, _ALIAS_SECONDS),
            absent_seconds=min(cache_seconds, _NO_ALIAS_SECONDS),
            stale_seconds=_STALE_SECONDS,
        )
        self._bases: dict[str, KnownBase] = {}
        self._bases_until = 0.0
        self._bases_lock = asyncio.Lock()

    def cached(self, name: str, tenant: str) -> PublishedModel | None:
        """The model if it was resolved lately and the tenant may use it; None says nothing."""
        model = self._lookups.known(name, partial(self._look_up, name))
        if model is None:
            target = self._targets.known((tenant, name), partial(self._target, tenant, name))
            model = self._lookups.known(target, partial(self._look_up, target)) if target else None
        return model if model is not None and model.tenant in ("", tenant) else None

    async def resolve(self, name: str, tenant: str) -> PublishedModel:
        """The model of that name; of an alias, the model that it means now, under its own name.

        Raises:
            NotFound: none, or another tenant's; ``metadata["close_matches"]`` names those that are close.
        """
        model = await self._lookups.get(name, partial(self._look_up, name))
        if model is None and (target := await self._targets.get((tenant, name), partial(self._target, tenant, name))):
            model = await self._lookups.get(target, partial(self._look_up, target))
        if model is not None and model.tenant in ("", tenant):
            return model
        raise await self.unknown(name, tenant)

    async def list(self, tenant: str) -> Sequence[PublishedModel]:
        """Models the tenant may name: published ones, newest first, then base models, then aliases."""
        published = list(await asyncio.to_thread(self._registry.list, tenant=tenant))
        names = {model.name for model in published}
        bases = dict.fromkeys(await self._served_bases()) | dict.fromkeys(sorted(await self.base_models()))
        known = published + [PublishedModel(name=name, kind="base") for name in bases if name not in names]
        by_name = {model.name: model for model in known}
        aliases = [alias for alias in await self.aliases(tenant) if alias.model in by_name]
        return known + [
            replace(by_name[a.model], name=a.name, metadata={**by_name[a.model].metadata, "alias_of": a.model})
            for a in aliases
            if a.name not in by_name
        ]

    async def base_models(self) -> dict[str, KnownBase]:
        """Base models the trainer knows, by name; what it said last while it doesn't answer."""
        if time.monotonic() < self._bases_until:
            return self._bases
        async with self._bases_lock:
            if time.monotonic() < self._bases_until:
                return self._bases
            try:
                request = training_service_pb2.ListBaseModelsRequest(page_size=1000)
                response = await self._trainer.call("training", "ListBaseModels", request)
                self._bases = {
                    m.name: KnownBase(m.name, m.source, m.parameter_count, m.context_length, m.license)
                    for m in response.base_models
                }
                self._bases_until = time.monotonic() + _BASE_MODELS_SECONDS
            except MartletError as error:
                log.warning("the trainer's base models can't be listed", extra={"error": error.message})
                self._bases_until = time.monotonic() + 1.0
        return self._bases

    async def delete(self, name: str, tenant: str) -> None:
        """Forget a published model's name. NotFound when the tenant has none of that name."""
        await asyncio.to_thread(self._registry.delete, name, tenant=tenant)
        self._lookups.forget(name)

    async def check_free(self, name: str, tenant: str) -> None:
        """Raise AlreadyExists if a name means something that a registration may not take over: a base model, or an alias."""
        try:
            known = await self.resolve(name, tenant)
        except NotFound:
            return
        if known.name != name or REGISTERED_SOURCE not in known.metadata:
            raise AlreadyExists(
                f"name: {name!r} is {'an alias' if known.name != name else f'the name of a {known.kind} model'}; choose another.",
                reason="NAME_TAKEN",
                metadata={"param": "name"},
            )

    def forget(self, name: str) -> None:
        """Look a name up anew when it is asked for again."""
        self._lookups.forget(name)

    async def aliases(self, tenant: str) -> Sequence[Alias]:
        """The tenant's aliases by name."""
        return await asyncio.to_thread(self._alias_store.list, tenant)

    async def alias(self, name: str, tenant: str) -> Alias:
        """An alias with its history. NotFound if there is none."""
        return await asyncio.to_thread(self._alias_store.get, tenant, name)

    async def put_alias(self, name: str, model: str, tenant: str, *, etag: str = "") -> Alias:
        """Give a name to a model; errors as of ``AliasStore.put``."""
        check_name(name)
        known = await self._lookups.get(name, partial(self._look_up, name))
        if known is not None:
            raise AlreadyExists(
                f"alias: {name!r} is the name of a {known.kind} model; choose another.",
                reason="NAME_TAKEN",
                metadata={"param": "alias"},
            )
        meant = await self.resolve(model, tenant)  # an alias of an alias means what that one means now
        moved = await asyncio.to_thread(self._alias_store.put, tenant, name, meant.name, etag=etag)
        self._targets.forget((tenant, name))
        return moved

    async def roll_back_alias(self, name: str, tenant: str) -> Alias:
        """Give a name back to the model before; errors as of ``AliasStore.rollback``."""
        moved = await asyncio.to_thread(self._alias_store.rollback, tenant, name)
        self._targets.forget((tenant, name))
        return moved

    async def delete_alias(self, name: str, tenant: str) -> None:
        """Forget an alias. NotFound if there is none."""
        await asyncio.to_thread(self._alias_store.delete, tenant, name)
        self._targets.forget((tenant, name))

    async def unknown(self, name: str, tenant: str) -> NotFound:
        """The error for a name that nothing answers to."""
        try:
            names = [model.name for model in await self.list(tenant)]
        except MartletError:
            names = list(self._replicas.snapshot.by_model)
            names = [n for n in names if self.cached(n, tenant) is not None]
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = (
            f" Did you mean {', '.join(f'`{n}`' for n in close)}?"
            if close
            else " GET /v1/models lists the models you may use."
        )
        return NotFound(
            f"The model `{name:.200}` does not exist or you do not have access to it.{hint}",
            reason="MODEL_NOT_FOUND",
            metadata={"param": "model", "close_matches": ",".join(close)},
        )

    async def _look_up(self, name: str) -> PublishedModel | None:
        try:
            return await self._threads.run(self._registry.get, name)
        except NotFound:
            pass  # not published: it may be a base model
        views = self._replicas.snapshot.replicas.values()
        served = any(name in view.whole or name in view.coming or name in view.home for view in views)
        if served and not name.startswith(_OWNED):
            return PublishedModel(name=name, kind="base")
        return PublishedModel(name=name, kind="base") if name in await self.base_models() else None

    async def _target(self, tenant: str, name: str) -> str | None:
        return await self._threads.run(self._alias_store.target, tenant, name)

    async def _served_bases(self) -> list[str]:
        views = self._replicas.snapshot.replicas.values()
        names = sorted({name for view in views for name in view.whole | view.home})
        bases = []
        for name in names:
            model = await self._look_up(name)
            if model is not None and model.kind == "base":
                bases.append(name)
        return bases
