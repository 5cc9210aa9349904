"""A replica as a whole: engine, models, server and registration, brought up and taken down in the right order."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

from martlet.gateway.v1 import replica_pb2
from martlet.inference.v1 import inference_service_pb2_grpc as service_grpc
from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, MartletError, NotFound, Unavailable
from martlet_core.gpu_devices import GpuMachine, find_machine
from martlet_core.gpu_leases import RedisGpuLeases
from martlet_core.models import ObjectModelRegistry
from martlet_core.rpc.context import DEFAULT_TENANT
from martlet_core.rpc.server import GrpcServer, Service

from martlet_inference import convert
from martlet_inference.dataplane import DataPlane
from martlet_inference.engines.base import Engine
from martlet_inference.engines.echo import EchoEngine
from martlet_inference.engines.server import ServerEngine
from martlet_inference.engines.server_process import ServerProgram
from martlet_inference.engines.transformers import TransformersOptions, transformers_program
from martlet_inference.engines.vllm import installed_vllm, vllm_program
from martlet_inference.engines.vllm_process import VllmOptions
from martlet_inference.gpu_gate import GpuGate
from martlet_inference.home import HomeSource, home_model
from martlet_inference.hub import HubModels
from martlet_inference.model_cache import ModelCache
from martlet_inference.model_source import FixedSource, ModelSource, RegistrySource
from martlet_inference.models import ModelPool
from martlet_inference.registration import Registration
from martlet_inference.servicer import SERVICE_NAME, InferenceServicer
from martlet_inference.settings import InferenceSettings

log = logging.getLogger(__name__)

STORE_POLL_SECONDS = 1.0
#: vLLM's own default for a GPU that it has to itself: the rest is for what it doesn't count.
MOST_GPU_MEMORY = 0.9
#: After a first model that the engine could not start, in seconds.
START_RETRY_SECONDS = 15.0


class Replica:
    """One inference replica.

    Args:
        settings: where it is deployed.
        engine: the engine, not started yet.
        source: where models come from that the settings don't bring along.
        gpus: the GPUs that the engine needs a lease of; None where it needs none.

    Raises:
        InvalidArgument, FailedPrecondition: the settings name a model that can never be served.
    """

    def __init__(
        self, settings: InferenceSettings, engine: Engine, source: ModelSource, gpus: GpuMachine | None = None
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._home = home_model(settings)
        self._source = HomeSource(self._home, source, hub_models(settings)) if self._home else source
        self.pool = ModelPool(engine, self._source)
        self.plane = DataPlane(engine, self.pool, max_requests=settings.max_requests)
        self.server = GrpcServer(
            settings.grpc_address,
            [Service(service_grpc.add_InferenceServiceServicer_to_server, InferenceServicer(self.plane), SERVICE_NAME)],
            internal_token=settings.internal_token,
        )
        self.port = 0
        self._gate = self.pool.whole.gpus = self._make_gate(gpus) if gpus else None
        self._starting_again: set[asyncio.Task[None]] = set()
        self._registration: Registration | None = None
        self._bring_up: asyncio.Task[None] | None = None

    @classmethod
    async def build(cls, settings: InferenceSettings) -> Replica:
        """A replica with the engine and the stores that the settings name; waits for the object store to be there."""
        machine = find_machine(settings, os.environ)
        engine = build_engine(settings, machine)
        gpus = machine if machine and (machine.simulated or engine.device == "cuda") else None
        home_model(settings)  # what can never be served is said before anything is waited for
        while True:
            try:
                return cls(settings, engine, await asyncio.to_thread(build_source, settings), gpus)
            except Unavailable as exc:
                log.warning("waiting for the object store", extra={"error": exc.message})
                await asyncio.sleep(STORE_POLL_SECONDS)

    async def start(self) -> None:
        """Serve, register, and begin to get the first model ready; returns once the port is open."""
        self._report_health()
        self.pool.on_change(self._report_health)
        self.port = await self.server.start()
        if self._settings.gateway_address:
            self._registration = Registration(
                self._settings.gateway_address,
                self._describe,
                renew_seconds=self._settings.renew_seconds,
                internal_token=self._settings.internal_token,
            )
            self.pool.on_change(self._registration.changed)
            self._registration.start()
        if self._gate:
            self._gate.start(on_change=self._gpus_changed, on_lost=self._gpus_lost)
        if self._settings.model:
            self._bring_up = asyncio.create_task(self._load_first_model(), name="first-model")

    async def run_until(self, stop: asyncio.Event) -> None:
        """Wait for ``stop``; a first model that can never be served ends the wait with its error."""
        stopped = asyncio.create_task(stop.wait())
        tasks = {stopped, self._bring_up} if self._bring_up else {stopped}
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if self._bring_up in done and stopped not in done:
            if self._bring_up and self._bring_up.exception():
                stopped.cancel()
                await self.stop()
                self._bring_up.result()
            await stopped

    async def stop(self) -> None:
        """Take no new requests, let the running ones end for up to ``drain_seconds``, deregister, stop."""
        self.plane.draining = True
        self._report_health()
        if self._bring_up:
            self._bring_up.cancel()
        if self._registration:
            try:
                await self._registration.report()
            except MartletError as exc:
                log.warning("could not report the draining", extra={"error": exc.message})
        if not await self.pool.wait_idle(self._settings.drain_seconds):
            log.warning("requests cut off at shutdown", extra={"requests": self.pool.active_requests})
        if self._registration:
            await self._registration.stop()
        await self.server.stop(grace_seconds=1.0)
        for task in self._starting_again:
            task.cancel()
        await self.pool.whole.close()
        if self._gate:
            await self._gate.stop()

    @property
    def _address(self) -> str:
        return self._settings.advertise_address or own_address(self._settings.grpc_address, self.port)

    def _make_gate(self, machine: GpuMachine) -> GpuGate:
        return GpuGate(
            RedisGpuLeases.from_url(self._settings.redis_url, machine.id),
            machine,
            count=self._settings.gpu_count,
            share=self._settings.replica_share(machine.seen),
            lease_seconds=self._settings.lease_seconds,
            label=lambda: f"inference replica {self._address}",
        )

    def _gpus_changed(self) -> None:
        self._report_health()
        if self._registration:
            self._registration.changed()

    def _gpus_lost(self) -> None:
        task = asyncio.create_task(self._start_again(), name="start-again")
        self._starting_again.add(task)
        task.add_done_callback(self._starting_again.discard)

    async def _start_again(self) -> None:
        while True:
            try:
                await self.pool.whole.restart()
                return
            except MartletError as exc:
                log.error("the engine did not start again; trying once more", extra={"error": exc.message})
                await asyncio.sleep(START_RETRY_SECONDS)

    async def _describe(self, name: str) -> replica_pb2.Replica:
        return await convert.replica(
            self.plane,
            name=name,
            address=self._address,
            accepts_placement=self._settings.accepts_placement,
            home_models=[self._home.name] if self._home else [],
        )

    def _report_health(self) -> None:
        for name in ("", SERVICE_NAME):
            self.server.set_serving(name, self.plane.ready)

    async def _load_first_model(self) -> None:
        name = self._home.name if self._home else self._settings.model
        self.pool.whole.announce(PublishedModel(name, "base"))
        model = await self._wait_for_model(name)
        while True:
            try:
                await self.pool.whole.load(model)
                return
            except MartletError as exc:
                log.error("the model is not ready; trying again", extra={"model": model.name, "error": exc.message})
                await asyncio.sleep(START_RETRY_SECONDS)

    async def _wait_for_model(self, name: str) -> PublishedModel:
        told = False
        while True:
            try:
                return await self._source.resolve(name, DEFAULT_TENANT)
            except (NotFound, Unavailable) as exc:
                if not told:
                    log.warning("waiting for the model to be published", extra={"model": name, "error": exc.message})
                told = True
            await asyncio.sleep(STORE_POLL_SECONDS)


def own_address(grpc_address: str, port: int) -> str:
    """Where others reach a server on ``grpc_address``: by this machine's name if it listens on all interfaces."""
    host = grpc_address.rpartition(":")[0]
    return f"{socket.gethostname() if host in ('', '0.0.0.0', '[::]') else host}:{port}"


def build_engine(settings: InferenceSettings, machine: GpuMachine | None = None) -> Engine:
    """The engine that the settings name, for the GPUs of a machine."""
    if settings.engine == "echo":
        return EchoEngine(
            tokens_per_second=settings.echo_tokens_per_second,
            default_tokens=settings.echo_default_tokens,
            max_lora_rank=settings.max_lora_rank,
            max_adapters=settings.max_adapters,
            slots=settings.echo_slots,
        )
    share = min(settings.replica_share(machine.seen if machine else 0), MOST_GPU_MEMORY)
    program = transformers_of(settings, share) if settings.engine == "transformers" else vllm_of(settings, share)
    return ServerEngine(program, start_seconds=settings.engine_start_seconds)


def transformers_of(settings: InferenceSettings, gpu_memory_share: float) -> ServerProgram:
    """transformers as the settings want it. FailedPrecondition if one of them is for vLLM alone."""
    if settings.gpu_count > 1:
        raise FailedPrecondition(
            f"MARTLET_GPU_COUNT is {settings.gpu_count}, but the engine transformers computes on one GPU; leave it at 1.",
            reason="TOO_MANY_GPUS",
        )
    if settings.engine_args:
        raise FailedPrecondition(
            "MARTLET_ENGINE_ARGS is set, but the engine transformers takes no arguments; leave it empty.",
            reason="ENGINE_ARGS_NOT_TAKEN",
        )
    options = TransformersOptions(
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        max_lora_rank=settings.max_lora_rank,
        max_adapters=settings.max_adapters,
        gpu_memory_share=gpu_memory_share,
        threads=settings.engine_threads,
    )
    return transformers_program(options)


def vllm_of(settings: InferenceSettings, gpu_memory_share: float) -> ServerProgram:
    """vLLM as the settings want it."""
    version, device = installed_vllm()
    options = VllmOptions(
        device=device,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        max_lora_rank=settings.max_lora_rank,
        max_adapters=settings.max_adapters,
        kv_cache_gib=settings.kv_cache_gib,
        gpu_memory_share=gpu_memory_share,
        gpu_count=settings.gpu_count,
        threads=settings.engine_threads,
        tool_call_parser=settings.tool_call_parser,
        extra_args=settings.engine_args,
    )
    return vllm_program(options, version)


def build_source(settings: InferenceSettings) -> ModelSource:
    """Where models come from: the stores, or nothing but the settings."""
    if not settings.resolve_models:
        return FixedSource(settings.model)
    objects = S3ObjectStore.from_settings(settings)
    objects.prepare()
    artifacts = ContentAddressedStore(objects, settings.cache_dir / "blobs", cache_max_bytes=settings.model_cache_bytes)
    cache = ModelCache(settings.cache_dir / "models", settings.model_cache_bytes)
    return RegistrySource(ObjectModelRegistry(objects), artifacts, cache, hub_models(settings))


def hub_models(settings: InferenceSettings) -> HubModels:
    """Models of the hub, in the cache that trainers on the same machine use too."""
    return HubModels(settings.cache_dir)
