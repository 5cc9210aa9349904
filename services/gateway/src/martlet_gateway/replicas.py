"""Which replicas there are: registration with a lease, and a snapshot in memory that routing reads without asking
anyone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from martlet.gateway.v1 import replica_pb2
from martlet.inference.v1 import inference_pb2
from martlet_core.errors import InvalidArgument, MartletError
from martlet_core.ids import new_id
from martlet_core.model_rules import serves_base

from martlet_gateway.clients import InferenceChannels
from martlet_gateway.metrics import Metrics
from martlet_gateway.prefixes import PrefixMemory
from martlet_gateway.replica_store import ReplicaStore

log = logging.getLogger(__name__)

_PREFIX = "replicas/"


@dataclass(slots=True)
class ReplicaView:
    """A replica as routing sees it.

    Attributes:
        id: part of the resource name behind the slash.
        whole: whole models it answers for now.
        adapters: adapters it holds now.
        coming: models it is loading, or whose engine is being started again.
        home: whole models that it can load though nobody published them.
        pinned: its whole model must stay.
        outstanding: requests this gateway has in work on it.
        reported: requests it had in work or waiting when it last reported, those of this gateway left out.
        avoid_until: until then (``time.monotonic()``) others go first: it just didn't answer.
        prefixes: beginnings of prompts that this gateway sent it.
        placing: held while a model is being placed on it.
        stored: what the store said last; a reading that says the same again must not undo ``note_loaded``.
    """

    id: str
    address: str
    proto: replica_pb2.Replica
    whole: frozenset[str] = frozenset()
    adapters: frozenset[str] = frozenset()
    coming: frozenset[str] = frozenset()
    home: frozenset[str] = frozenset()
    pinned: bool = False
    outstanding: int = 0
    reported: int = 0
    avoid_until: float = 0.0
    prefixes: PrefixMemory = field(default_factory=PrefixMemory)
    placing: asyncio.Lock = field(default_factory=asyncio.Lock)
    stored: replica_pb2.Replica | None = None

    @property
    def usable(self) -> bool:
        """Takes new requests."""
        return self.proto.ready and not self.proto.draining

    @property
    def load(self) -> int:
        """Requests in work or waiting, as far as this gateway knows."""
        return self.outstanding + self.reported

    @property
    def own_model(self) -> str:
        """The model it was started for, as far as it says: its home model, else the first whole one on it, else empty."""
        return min(self.home or self.whole | self.coming, default="")

    @property
    def takes_models(self) -> bool:
        """May be asked to load a whole model."""
        return self.proto.accepts_placement and not self.proto.draining

    @property
    def occupied(self) -> bool:
        """Has a whole model that another one would have to replace."""
        return any(model.kind != inference_pb2.MODEL_KIND_ADAPTER for model in self.proto.models)

    def serves(self, base_model: str) -> bool:
        """Whether adapters of a base model run on its whole model."""
        return any(serves_base(name, base_model) for name in self.whole)

    def will_serve(self, base_model: str) -> bool:
        """Whether ``serves`` will be true of it, as soon as its engine is ready."""
        names = self.coming if self.usable else self.coming | self.whole
        return not self.proto.draining and any(serves_base(name, base_model) for name in names)

    def refresh(self, proto: replica_pb2.Replica) -> None:
        """Take over what the replica said last."""
        ready, loading = inference_pb2.MODEL_STATE_READY, []
        whole, adapters = [], []
        self.pinned = False
        for model in proto.models:
            if model.kind != inference_pb2.MODEL_KIND_ADAPTER:
                self.pinned = self.pinned or model.pinned
            if model.state != ready:
                loading.append(model.name)
            elif model.kind == inference_pb2.MODEL_KIND_ADAPTER:
                adapters.append(model.name)
            else:
                whole.append(model.name)
        changed = proto.load != self.proto.load or proto.expire_time != self.proto.expire_time
        if self.whole != frozenset(whole):
            self.prefixes.clear()
        self.proto = proto
        self.address = proto.address
        self.whole, self.adapters, self.coming = frozenset(whole), frozenset(adapters), frozenset(loading)
        self.home = frozenset(proto.home_models)
        if changed:
            reported = proto.load.active_requests + proto.load.waiting_requests
            self.reported = max(0, reported - self.outstanding)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The replicas at one moment.

    Attributes:
        replicas: all whose lease holds, by id.
        by_model: usable replicas by the models they answer for, whole models and adapters alike.
    """

    replicas: Mapping[str, ReplicaView]
    by_model: Mapping[str, tuple[ReplicaView, ...]]

    def with_base(self, base_model: str) -> Sequence[ReplicaView]:
        """Usable replicas on whose whole model the adapters of a base model run."""
        exact = self.by_model.get(base_model)
        if exact is not None:
            return exact
        return [view for view in self.replicas.values() if view.usable and view.serves(base_model)]


class ReplicaRegistry:
    """Registers replicas and keeps the snapshot fresh.

    When the store doesn't answer, the last snapshot stays: a broken Redis must not stop chats that could go on.

    Args:
        store: where registrations are kept.
        channels: told which addresses are gone.
        metrics: gets the counts of replicas.
        lease_seconds: life of a registration that isn't renewed.
        refresh_seconds: pause between two readings of the store.
        settle_seconds: after the start, how long replicas that lost their lease meanwhile may take to come back.
    """

    def __init__(
        self,
        store: ReplicaStore,
        channels: InferenceChannels,
        metrics: Metrics,
        *,
        lease_seconds: float = 10.0,
        refresh_seconds: float = 0.5,
        settle_seconds: float = 0.0,
    ) -> None:
        self._store = store
        self._channels = channels
        self._metrics = metrics
        self._lease_seconds = lease_seconds
        self._refresh_seconds = refresh_seconds
        self._settle_seconds = settle_seconds
        self._settled_at = 0.0
        self._views: dict[str, ReplicaView] = {}
        self.snapshot = Snapshot({}, {})
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._store_ok = True

    async def start(self) -> None:
        """Read the store once and go on doing so."""
        self._settled_at = time.monotonic() + self._settle_seconds
        await self.refresh()
        self._task = asyncio.create_task(self._run(), name="replica-refresh")

    async def stop(self) -> None:
        """Stop reading the store."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def settling_seconds(self) -> float:
        """How much longer the list may lack replicas that are running; not above 0 once it is complete."""
        return self._settled_at - time.monotonic()

    async def register(self, replica: replica_pb2.Replica) -> replica_pb2.Replica:
        """Make a replica known under a new id."""
        _check_address(replica.address)
        stored = replica_pb2.Replica()
        stored.CopyFrom(replica)
        replica_id = new_id()
        stored.name = _PREFIX + replica_id
        stored.create_time.GetCurrentTime()
        self._set_expiry(stored)
        await self._store.put(replica_id, stored.address, stored.SerializeToString(), self._lease_seconds)
        log.info(
            "replica registered", extra={"replica": stored.name, "address": stored.address, "engine": stored.engine}
        )
        self._views = {i: v for i, v in self._views.items() if v.address != stored.address}
        self._take_over(stored)
        self._rebuild()
        return stored

    async def renew(self, replica: replica_pb2.Replica) -> replica_pb2.Replica:
        """Renew a lease and take over what changed. NotFound when it has lapsed."""
        replica_id = replica_id_of(replica.name)
        _check_address(replica.address)
        stored = replica_pb2.Replica()
        stored.CopyFrom(replica)
        known = self._views.get(replica_id)
        if known is not None and not stored.HasField("create_time"):
            stored.create_time.CopyFrom(known.proto.create_time)
        self._set_expiry(stored)
        await self._store.renew(replica_id, stored.SerializeToString(), self._lease_seconds)
        self._take_over(stored)
        self._rebuild()
        return stored

    async def deregister(self, name: str) -> None:
        """Take a replica off at once."""
        replica_id = replica_id_of(name)
        await self._store.remove(replica_id)
        if self._views.pop(replica_id, None) is not None:
            log.info("replica deregistered", extra={"replica": name})
        self._rebuild()

    async def refresh(self) -> None:
        """Read the store and rebuild the snapshot."""
        try:
            values = await self._store.all()
        except MartletError as error:
            if self._store_ok:
                log.warning(
                    "replicas can't be read; routing goes on with what is known", extra={"error": error.message}
                )
            self._store_ok = False
            return
        self._store_ok = True
        protos = [replica_pb2.Replica.FromString(value) for value in values]
        live = {replica_id_of(proto.name) for proto in protos}
        gone = [i for i in self._views if i not in live]
        for replica_id in gone:
            log.warning("replica's lease has lapsed", extra={"replica": _PREFIX + replica_id})
            del self._views[replica_id]
        for proto in protos:
            self._take_over(proto)
        self._rebuild()

    def note_loaded(self, replica: ReplicaView, model: inference_pb2.ServedModel) -> None:
        """A replica has loaded a model: route to it before its next report says so."""
        adapter = model.kind == inference_pb2.MODEL_KIND_ADAPTER
        if replica.usable and model.name in (replica.adapters if adapter else replica.whole):
            return
        proto = replica_pb2.Replica()
        proto.CopyFrom(replica.proto)
        others = [other for other in proto.models if adapter and other.name != model.name]
        del proto.models[:]
        proto.models.extend(others)
        added = proto.models.add()
        added.CopyFrom(model)
        added.state = inference_pb2.MODEL_STATE_READY
        proto.ready = True
        replica.refresh(proto)
        self._rebuild()

    def note_gone(self, replica: ReplicaView, base_model: str) -> None:
        """A replica said that it no longer has a whole model: look for it elsewhere before its next report."""
        if not replica.serves(base_model):
            return
        proto = replica_pb2.Replica()
        proto.CopyFrom(replica.proto)
        del proto.models[:]  # its adapters went with it
        replica.refresh(proto)
        self._rebuild()

    async def wait_change(self, timeout_seconds: float) -> bool:
        """Wait until the snapshot is rebuilt; False on time-out."""
        changed = self._changed
        try:
            async with asyncio.timeout(timeout_seconds):
                await changed.wait()
        except TimeoutError:
            return False
        return True

    def list(self) -> Sequence[replica_pb2.Replica]:
        """The replicas whose lease holds, ordered by id."""
        return [view.proto for _, view in sorted(self.snapshot.replicas.items())]

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_seconds)
            await self.refresh()

    def _take_over(self, proto: replica_pb2.Replica) -> None:
        replica_id = replica_id_of(proto.name)
        view = self._views.get(replica_id)
        if view is None:
            view = self._views[replica_id] = ReplicaView(replica_id, proto.address, replica_pb2.Replica())
        if view.stored != proto:
            view.stored = proto
            view.refresh(proto)

    def _rebuild(self) -> None:
        by_model: dict[str, list[ReplicaView]] = {}
        usable = 0
        for view in self._views.values():
            if view.usable:
                usable += 1
                for name in (*view.whole, *view.adapters):
                    by_model.setdefault(name, []).append(view)
        self.snapshot = Snapshot(dict(self._views), {name: tuple(views) for name, views in by_model.items()})
        self._channels.forget({view.address for view in self._views.values()})
        self._metrics.replicas_known.set(len(self._views))
        self._metrics.replicas_ready.set(usable)
        self._changed.set()
        self._changed = asyncio.Event()

    def _set_expiry(self, proto: replica_pb2.Replica) -> None:
        proto.expire_time.FromNanoseconds(int((time.time() + self._lease_seconds) * 1e9))


def replica_id_of(name: str) -> str:
    """``replicas/{id}`` -> id. InvalidArgument for anything else."""
    replica_id = name.removeprefix(_PREFIX)
    if not name.startswith(_PREFIX) or not replica_id.isalnum():
        raise InvalidArgument.field("name", f"must be `replicas/{{id}}`; got {name!r:.80}.")
    return replica_id


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidArgument.field("replica.address", f"must be `host:port`; got {address!r:.80}.")
