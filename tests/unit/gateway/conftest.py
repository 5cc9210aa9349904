"""A whole gateway on free ports: stores in memory, a trainer that speaks real gRPC, and echo replicas."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import openai
import pytest
from martlet.evaluator.v1 import evaluation_service_pb2_grpc
from martlet.trainer.v1 import merge_service_pb2_grpc, training_service_pb2_grpc
from martlet_core.api_keys import OPERATOR, ApiKeyStore
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.job_archive import mark_whole
from martlet_core.models import ObjectModelRegistry
from martlet_core.reconciler import Reconciler, ReconcilerOptions
from martlet_core.rpc.client import open_channel
from martlet_core.rpc.server import GrpcServer, Service
from martlet_core.stores import Stores
from martlet_core.testing.bell import MemoryBell
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_gateway.clients import Stages
from martlet_gateway.idempotency import LocalRetryMemory
from martlet_gateway.replica_store import LocalReplicaStore
from martlet_gateway.runs.advance import AdvanceOptions
from martlet_gateway.runs.worker import RunWorker, RunWorkerOptions
from martlet_gateway.runs.world import make_world
from martlet_gateway.server import GatewayServer, SharedMemory
from martlet_gateway.settings import GatewaySettings
from martlet_gateway.testing.evals import Evals as EvalsUnderTest
from martlet_gateway.testing.evaluator import EvaluatorDouble
from martlet_gateway.testing.stages import StagesDouble
from martlet_gateway.testing.trainer import BASE, TrainerDouble
from martlet_inference.engines.echo import EchoEngine
from martlet_inference.replica import Replica
from martlet_inference.settings import InferenceSettings
from martlet_inference.testing import MemorySource

TOKEN = "internal-token"


@dataclass
class GatewayUnderTest:
    """A running gateway and what stands behind it."""

    server: GatewayServer
    stores: Stores
    trainer: TrainerDouble
    settings: GatewaySettings
    key: str
    other_key: str
    clients: AsyncExitStack

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.http_port}"

    def openai(self, key: str | None = None, **options: Any) -> openai.AsyncOpenAI:
        """The stock client; it doesn't retry unless told to."""
        options = {"max_retries": 0, **options}
        client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, **options)
        self.clients.push_async_callback(client.close)
        return client

    def http(self, key: str | None = None) -> httpx.AsyncClient:
        """A plain HTTP client with the key."""
        client = httpx.AsyncClient(
            base_url=self.url, headers={"authorization": f"Bearer {key or self.key}"}, timeout=30
        )
        self.clients.push_async_callback(client.aclose)
        return client

    def channel(self) -> grpc.aio.Channel:
        """A channel to the gateway's gRPC side."""
        channel = open_channel(f"127.0.0.1:{self.server.grpc_port}")
        self.clients.push_async_callback(channel.close, None)
        return channel

    def metadata(self, key: str | None = None) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {key or self.key}"),)

    async def upload(self, rows: int = 3, key: str | None = None) -> str:
        """Upload a small data set; returns its file id."""
        made = await self.openai(key).files.create(file=("train.jsonl", dataset(rows)), purpose="fine-tune")
        return made.id


def dataset(rows: int = 3) -> bytes:
    """Rows in the chat format."""
    row = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"hello"}]}\n'
    return row * rows


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    objects = MemoryObjectStore()
    artifacts = ContentAddressedStore(objects, tmp_path / "cache")
    yield Stores(MemoryJobStore(), objects, artifacts, ObjectModelRegistry(objects))
    artifacts.close()


@pytest.fixture
async def trainer() -> AsyncIterator[tuple[TrainerDouble, str]]:
    """A trainer double and its address."""
    double = TrainerDouble()
    services = (
        Service(
            training_service_pb2_grpc.add_TrainingServiceServicer_to_server,
            double,
            "martlet.trainer.v1.TrainingService",
        ),
        Service(merge_service_pb2_grpc.add_MergeServiceServicer_to_server, double, "martlet.trainer.v1.MergeService"),
    )
    server = GrpcServer("127.0.0.1:0", services, internal_token=TOKEN)
    yield double, f"127.0.0.1:{await server.start()}"
    await server.stop(0)


@pytest.fixture
async def settings(tmp_path: Path, trainer: tuple[TrainerDouble, str]) -> GatewaySettings:
    """Settings of the gateway; a test module may override this fixture."""
    return GatewaySettings(
        http_port=0,
        grpc_address="127.0.0.1:0",
        trainer_address=trainer[1],
        internal_token=TOKEN,
        upload_dir=tmp_path / "uploads",
        cache_dir=tmp_path / "cache",
        key_cache_seconds=0.2,
        name_cache_seconds=0.2,
        replica_refresh_seconds=0.05,
        replica_settle_seconds=0.0,
        placement_timeout_seconds=10.0,
    )


@pytest.fixture
async def gateway(
    stores: Stores, trainer: tuple[TrainerDouble, str], settings: GatewaySettings
) -> AsyncIterator[GatewayUnderTest]:
    """A running gateway with keys of two tenants; the first one's is an operator's."""
    keys = ApiKeyStore(stores.objects)
    key, _ = keys.create("acme", scope=OPERATOR)
    other_key, _ = keys.create("globex")
    server = GatewayServer(settings, stores, SharedMemory(LocalReplicaStore(), LocalRetryMemory()))
    await server.start()
    async with AsyncExitStack() as clients:
        yield GatewayUnderTest(server, stores, trainer[0], settings, key, other_key, clients)
    await server.stop()


@dataclass
class RunsUnderTest:
    """A gateway, all stages behind it, and as many workers of runs as a test starts."""

    gateway: GatewayUnderTest
    stages: StagesDouble
    workers: list[tuple[RunWorker, asyncio.Task[None], Stages]]

    async def start(self, lease_seconds: float = 30.0) -> RunWorker:
        """Start a worker."""
        channels = Stages.connect(self.gateway.settings)
        options = RunWorkerOptions(
            lease_seconds=lease_seconds,
            idle_poll_seconds=0.02,
            sweep_seconds=0.05,
            advance=AdvanceOptions(poll_seconds=0.3, progress_seconds=0.05, rewatch_seconds=0.05, missing_seconds=5.0),
        )
        stores = self.gateway.stores
        worker = RunWorker(stores, MemoryBell(), make_world(stores, channels), options)
        self.workers.append((worker, asyncio.create_task(worker.serve()), channels))
        return worker

    async def kill(self) -> None:
        """End the newest worker where it stands, as SIGKILL would: nothing is given back."""
        _, task, channels = self.workers.pop()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await channels.close()

    def reconciler(self) -> Reconciler:
        """The runs' reconciler, to be run by hand."""
        return Reconciler("runs", self.gateway.stores, MemoryBell(), [], "test", ReconcilerOptions())

    async def submit(self, source: str, key: str | None = None, **body: Any) -> dict[str, Any]:
        """Submit a run over REST; its JSON."""
        answer = await self.gateway.http(key).post("/v1/martlet/runs", json={"source": source, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def show(self, run: dict[str, Any]) -> dict[str, Any]:
        """A run as it is now, with its steps by id."""
        answer = await self.gateway.http().get(f"/v1/martlet/runs/{run['id']}")
        assert answer.status_code == 200, answer.text
        shown = answer.json()
        return shown | {"step": {step["id"]: step for step in shown["steps"]}}

    async def verb(self, run: dict[str, Any], verb: str) -> dict[str, Any]:
        """Cancel, pause or resume."""
        answer = await self.gateway.http().post(f"/v1/martlet/runs/{run['id']}/{verb}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def until(self, run: dict[str, Any], seconds: float = 10.0, **expected: str) -> dict[str, Any]:
        """The run once its state, or the states of the steps named, are as expected."""
        async with asyncio.timeout(seconds):
            while True:
                shown = await self.show(run)
                states = {"state": shown["state"]} | {name: step["state"] for name, step in shown["step"].items()}
                if all(states[name] == state for name, state in expected.items()):
                    return shown
                await asyncio.sleep(0.02)

    async def eventually(self, condition: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
        """Wait until a condition holds."""
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110  # it is asked of others
                await asyncio.sleep(0.02)

    async def until_job(self, step: str, attempt: int = -1, seconds: float = 10.0) -> Any:
        """The job of a step, once there is one."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return self.stages.job_of(step, attempt)
                except (KeyError, IndexError):
                    await asyncio.sleep(0.02)


@pytest.fixture
async def stages() -> AsyncIterator[tuple[StagesDouble, str]]:
    """Trainer, quantizer and evaluator as one double, and its address."""
    double = StagesDouble()
    server = GrpcServer("127.0.0.1:0", double.services(), internal_token=TOKEN)
    yield double, f"127.0.0.1:{await server.start()}"
    await server.stop(0)


@pytest.fixture
async def runs(
    stores: Stores, stages: tuple[StagesDouble, str], trainer: tuple[TrainerDouble, str], settings: GatewaySettings
) -> AsyncIterator[RunsUnderTest]:
    """A running gateway before all stages; workers of runs are started by the test."""
    double, address = stages
    names = ("trainer_address", "quantizer_address", "evaluator_address")
    settings = settings.model_copy(update=dict.fromkeys(names, address))
    key, _ = ApiKeyStore(stores.objects).create("acme", scope=OPERATOR)
    other_key, _ = ApiKeyStore(stores.objects).create("globex")
    mark_whole(stores.jobs, "runs")
    server = GatewayServer(settings, stores, SharedMemory(LocalReplicaStore(), LocalRetryMemory()))
    await server.start()
    async with AsyncExitStack() as clients:
        gateway = GatewayUnderTest(server, stores, trainer[0], settings, key, other_key, clients)
        under_test = RunsUnderTest(gateway, double, [])
        yield under_test
        while under_test.workers:
            await under_test.kill()
    await server.stop()


@pytest.fixture
async def evals(
    stores: Stores, trainer: tuple[TrainerDouble, str], settings: GatewaySettings
) -> AsyncIterator[EvalsUnderTest]:
    """A running gateway before an evaluator that evaluates nothing, and the stock client."""
    double = EvaluatorDouble()
    add = evaluation_service_pb2_grpc.add_EvaluationServiceServicer_to_server
    service = Service(add, double, "martlet.evaluator.v1.EvaluationService")
    evaluator = GrpcServer("127.0.0.1:0", (service,), internal_token=TOKEN)
    settings = settings.model_copy(update={"evaluator_address": f"127.0.0.1:{await evaluator.start()}"})
    key, _ = ApiKeyStore(stores.objects).create("acme", scope=OPERATOR)
    other_key, _ = ApiKeyStore(stores.objects).create("globex")
    server = GatewayServer(settings, stores, SharedMemory(LocalReplicaStore(), LocalRetryMemory()))
    await server.start()
    async with AsyncExitStack() as clients:
        gateway = GatewayUnderTest(server, stores, trainer[0], settings, key, other_key, clients)
        yield EvalsUnderTest(gateway, double, gateway.openai())
    await server.stop()
    await evaluator.stop(0)


@dataclass
class EchoReplica:
    """A running replica on the echo engine."""

    replica: Replica
    engine: EchoEngine
    source: MemorySource

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.replica.port}"


StartReplica = Callable[..., Awaitable[EchoReplica]]


@pytest.fixture
async def start_replica(gateway: GatewayUnderTest) -> AsyncIterator[StartReplica]:
    """Starts echo replicas that register with the gateway; returns once the gateway routes to them."""
    running: list[Replica] = []

    async def start(model: str = BASE, *, rate: float = 0.0, **settings: Any) -> EchoReplica:
        source = MemorySource()
        source.publish(*(PublishedModel(name, "base") for name in (BASE, "qwen-tiny", model)))
        engine = EchoEngine(tokens_per_second=rate, max_lora_rank=settings.pop("max_lora_rank", 64))
        made = Replica(
            InferenceSettings(
                engine="echo",
                model=model,
                grpc_address="127.0.0.1:0",
                gateway_address=f"127.0.0.1:{gateway.server.grpc_port}",
                internal_token=TOKEN,
                drain_seconds=0.1,
                renew_seconds=settings.pop("renew_seconds", 1.0),
                **settings,
            ),
            engine,
            source,
        )
        await made.start()
        running.append(made)
        echo = EchoReplica(made, engine, source)
        await until(gateway, lambda views: any(v.address == echo.address and v.usable for v in views))
        return echo

    yield start
    for replica in running:
        await replica.stop()


async def until(gateway: GatewayUnderTest, condition: Callable[[list[Any]], bool], seconds: float = 10.0) -> None:
    """Wait until what the gateway knows of its replicas fulfils a condition."""
    registry, deadline = gateway.server.context.replicas, time.monotonic() + seconds
    while not condition(list(registry.snapshot.replicas.values())):
        remaining = deadline - time.monotonic()
        assert remaining > 0, "the gateway's list of replicas never fulfilled the condition"
        await registry.wait_change(remaining)


def publish(gateway: GatewayUnderTest, replica: EchoReplica, model: PublishedModel) -> PublishedModel:
    """Publish a fine-tuned model where gateway and replica look."""
    gateway.stores.models.publish(model)
    replica.source.publish(replace(model))
    return model


@pytest.fixture
def tools() -> Any:
    """The helpers above, for tests: modules under tests/ can't import one another."""

    class Tools:
        publish = staticmethod(publish)
        until = staticmethod(until)
        dataset = staticmethod(dataset)
        base = BASE
        token = TOKEN

    return Tools
