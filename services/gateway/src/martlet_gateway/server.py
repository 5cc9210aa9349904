"""Puts a gateway together and runs its two sides, REST and gRPC, on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import redis.asyncio as redis
import uvicorn
from martlet_core.api_keys import ApiKeyStore
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.errors import FailedPrecondition
from martlet_core.housekeeping import Housekeeper
from martlet_core.job_bus import Bell, CeleryBell
from martlet_core.rpc.server import GrpcServer
from martlet_core.stores import Stores

from martlet_gateway.app import build_app
from martlet_gateway.artifact_uploads import ArtifactUploads
from martlet_gateway.auth import Authenticator, caller_finder
from martlet_gateway.choice import Choice
from martlet_gateway.chores import gateway_chores
from martlet_gateway.clients import InferenceChannels, Stages
from martlet_gateway.context import GatewayContext
from martlet_gateway.eval_store import EvalStore
from martlet_gateway.file_store import FileStore
from martlet_gateway.idempotency import RedisRetryMemory, RetryMemory
from martlet_gateway.lineage import Lineage
from martlet_gateway.lookups import LookupThreads
from martlet_gateway.metrics import Metrics
from martlet_gateway.model_names import ModelNames
from martlet_gateway.replica_store import RedisReplicaStore, ReplicaStore
from martlet_gateway.replicas import ReplicaRegistry
from martlet_gateway.router import Router
from martlet_gateway.runs.records import STAGE as RUNS_STAGE
from martlet_gateway.runs.service import RunService
from martlet_gateway.runs.world import make_world
from martlet_gateway.services import grpc_services
from martlet_gateway.settings import GatewaySettings
from martlet_gateway.upload_store import UploadStore
from martlet_gateway.usage import ArtifactUse

log = logging.getLogger(__name__)

_BACKLOG = 4096
_KEEP_ALIVE_SECONDS = 75
_GRACE_SECONDS = 10


@dataclass(frozen=True)
class SharedMemory:
    """What gateways of one deployment share beside the stores."""

    replicas: ReplicaStore
    retries: RetryMemory
    bell: Bell = field(default_factory=lambda: _NoBell())


class _NoBell:
    """For deployments whose workers look by themselves."""

    def ring(self, queue: str, job_id: str) -> None:
        """See ``Bell.ring``."""


def open_shared_memory(settings: GatewaySettings) -> tuple[SharedMemory, redis.Redis]:
    """Shared memory in Redis, and the client to close at the end."""
    client = redis.from_url(
        settings.redis_url, socket_timeout=5.0, socket_connect_timeout=2.0, health_check_interval=25
    )
    retries = RedisRetryMemory(client, settings.retry_window_seconds)
    return SharedMemory(RedisReplicaStore(client), retries, CeleryBell(settings.redis_url)), client


class GatewayServer:
    """A gateway.

    Args:
        settings: where it is deployed.
        stores: artifacts, objects, models and keys.
        shared: replicas and retries.

    Attributes:
        context: its parts.
        http_port: port of REST, once started.
        grpc_port: port of gRPC, once started.
    """

    def __init__(self, settings: GatewaySettings, stores: Stores, shared: SharedMemory) -> None:
        self._settings = settings
        self._channels = InferenceChannels()
        self._lookup_threads = LookupThreads()
        self.context = _assemble(settings, stores, shared, self._channels, self._lookup_threads)
        auth = Authenticator(
            caller_finder(ApiKeyStore(stores.objects)),
            self._lookup_threads,
            internal_token=settings.internal_token,
            cache_seconds=settings.key_cache_seconds,
        )
        config = uvicorn.Config(
            build_app(self.context, auth),
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        self._http = _HttpServer(config)
        self._grpc = GrpcServer(settings.grpc_address, grpc_services(self.context), authenticate=auth.grpc_tenant)
        parts = self.context
        stages = [*(stage.stage for stage in parts.stages.all()), RUNS_STAGE]
        chores = gateway_chores(stores.jobs, stages, parts.files, parts.uploads, parts.artifact_uploads)
        self._housekeeper = Housekeeper(stores.jobs, chores, settings.housekeeping_hours * 3600)
        self._serving: asyncio.Task[None] | None = None
        self.http_port = 0
        self.grpc_port = 0

    async def start(self) -> None:
        """Serve.

        Raises:
            FailedPrecondition: an address can't be listened on, or anyone could register replicas there.
        """
        _refuse_open_registration(self._settings)
        await self.context.replicas.start()
        self.grpc_port = await self._grpc.start()
        listener = _listen(self._settings.http_host, self._settings.http_port)
        self.http_port = listener.getsockname()[1]
        self._serving = asyncio.create_task(self._http.serve(sockets=[listener]), name="http")
        while not self._http.started:
            if self._serving.done():
                self._serving.result()
                raise FailedPrecondition("REST ended while it started.")
            await asyncio.sleep(0.005)
        self._housekeeper.start()
        log.info("serving REST on port %d", self.http_port)

    async def stop(self) -> None:
        """Stop taking requests, let running ones end for ten seconds, then cut them."""
        await asyncio.to_thread(self._housekeeper.stop)
        self._http.should_exit = True
        await self._grpc.stop(_GRACE_SECONDS)
        if self._serving is not None:
            await self._serving
        await self.context.replicas.stop()
        await self.context.router.close()
        await self._channels.close()
        await self.context.stages.close()
        self._lookup_threads.close()


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: ``__main__`` stops both sides together."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _refuse_open_registration(settings: GatewaySettings) -> None:
    """FailedPrecondition if whoever reaches the gRPC port could register a replica, and so read everyone's chats."""
    if not settings.internal_token and not is_loopback(settings.grpc_address):
        raise FailedPrecondition(
            f"gRPC would listen on {settings.grpc_address}, where anyone could register replicas. Set "
            "MARTLET_INTERNAL_TOKEN to the same secret for all services, or MARTLET_GRPC_ADDRESS to 127.0.0.1.",
            reason="INTERNAL_TOKEN_REQUIRED",
        )


def is_loopback(address: str) -> bool:
    """True if a gRPC address can be reached from this machine alone."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _assemble(
    settings: GatewaySettings,
    stores: Stores,
    shared: SharedMemory,
    channels: InferenceChannels,
    threads: LookupThreads,
) -> GatewayContext:
    metrics = Metrics()
    stages = Stages.connect(settings)
    replicas = ReplicaRegistry(
        shared.replicas,
        channels,
        metrics,
        lease_seconds=settings.replica_lease_seconds,
        refresh_seconds=settings.replica_refresh_seconds,
        settle_seconds=settings.replica_settle_seconds,
    )
    world = make_world(stores, stages)
    names = ModelNames(
        stores.models, replicas, stages.trainer, threads, world.aliases, cache_seconds=settings.name_cache_seconds
    )
    artifacts = cast(ContentAddressedStore, stores.artifacts)
    return GatewayContext(
        settings=settings,
        stores=stores,
        files=FileStore(stores, settings.upload_dir),
        evals=EvalStore(stores.objects),
        uploads=UploadStore(
            stores.objects, ttl_seconds=settings.upload_ttl_seconds, max_bytes=settings.max_upload_bytes
        ),
        artifact_uploads=ArtifactUploads(
            artifacts,
            settings.upload_dir,
            ttl_seconds=settings.upload_ttl_seconds,
            max_bytes=settings.max_upload_bytes,
        ),
        stages=stages,
        replica_store=shared.replicas,
        replicas=replicas,
        names=names,
        router=Router(
            replicas,
            names,
            channels,
            metrics,
            Choice(settings.routing),
            internal_token=settings.internal_token,
            placement_timeout_seconds=settings.placement_timeout_seconds,
        ),
        runs=RunService(stores, shared.bell, world),
        lineage=Lineage(stores, world.aliases),
        retries=shared.retries,
        use=ArtifactUse(stages, stores.models, stores.jobs),
        metrics=metrics,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise FailedPrecondition(
            f"Can't listen for HTTP on {host}:{port}: {error.strerror}. Another process may use the port; "
            "set MARTLET_HTTP_PORT.",
            reason="ADDRESS_IN_USE",
        ) from error
    return listener
