"""A whole gateway on free ports: stores in memory, a trainer that speaks real gRPC, and echo replicas."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import openai
import pytest
from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import (
    merge_job_pb2,
    merge_service_pb2,
    merge_service_pb2_grpc,
    training_job_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
)
from martlet_core.api_keys import OPERATOR, ApiKeyStore
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import InvalidArgument, NotFound
from martlet_core.ids import new_id
from martlet_core.job_rules import TRANSITIONS, illegal_transition, unknown_job
from martlet_core.jobs import JobState
from martlet_core.models import ObjectModelRegistry
from martlet_core.rpc.client import open_channel
from martlet_core.rpc.context import call_context
from martlet_core.rpc.server import GrpcServer, Service
from martlet_core.stores import Stores
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_gateway.idempotency import LocalRetryMemory
from martlet_gateway.replica_store import LocalReplicaStore
from martlet_gateway.server import GatewayServer, SharedMemory
from martlet_gateway.settings import GatewaySettings
from martlet_inference.engines.echo import EchoEngine
from martlet_inference.replica import Replica
from martlet_inference.settings import InferenceSettings
from martlet_inference.testing import MemorySource

TOKEN = "internal-token"
BASE = "smollm2-135m-instruct"


@dataclass
class Call:
    """A call that reached the trainer."""

    method: str
    tenant: str
    request_id: str
    request: Any


@dataclass
class TrainerDouble(training_service_pb2_grpc.TrainingServiceServicer, merge_service_pb2_grpc.MergeServiceServicer):
    """A trainer that keeps jobs in a dict and trains nothing.

    Attributes:
        calls: everything that reached it.
        jobs: by bare id.
        events: of each job, oldest first.
        failures: errors to raise by method, each once.
    """

    calls: list[Call] = field(default_factory=list)
    jobs: dict[str, training_job_pb2.TrainingJob] = field(default_factory=dict)
    merges: dict[str, merge_job_pb2.MergeJob] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    events: dict[str, list[job_pb2.JobEvent]] = field(default_factory=dict)
    checkpoints: dict[str, list[training_job_pb2.TrainingCheckpoint]] = field(default_factory=dict)
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    by_request_id: dict[tuple[str, str], str] = field(default_factory=dict)
    base_models: tuple[str, ...] = (BASE, "qwen-tiny")

    def _enter(self, method: str, request: Any) -> None:
        context = call_context()
        self.calls.append(Call(method, context.tenant, context.request_id, request))
        if self.failures.get(method):
            raise self.failures[method].pop(0)

    def _own(self, name: str) -> training_job_pb2.TrainingJob:
        bare = name.removeprefix("trainingJobs/")
        if self.owners.get(bare) != call_context().tenant:
            raise unknown_job(bare)
        return self.jobs[bare]

    async def CreateTrainingJob(
        self, request: training_service_pb2.CreateTrainingJobRequest, context: Any
    ) -> training_job_pb2.TrainingJob:
        self._enter("CreateTrainingJob", request)
        spec = request.training_job.spec
        if spec.base_model not in self.base_models:
            raise NotFound(
                f"base_model: {spec.base_model!r} is not a registered base model; did you mean {BASE}?",
                reason="BASE_MODEL_NOT_FOUND",
                metadata={"close_matches": BASE},
            )
        if spec.hyperparameters.learning_rate > 10:
            raise InvalidArgument.field("spec.hyperparameters.learning_rate", "must be at most 10; it is 11.0.")
        key = (call_context().tenant, request.request_id)
        if request.request_id and key in self.by_request_id:
            return self.jobs[self.by_request_id[key]]
        job = training_job_pb2.TrainingJob(
            name=f"trainingJobs/{new_id()}",
            spec=spec,
            state=job_pb2.JOB_STATE_QUEUED,
            labels=request.training_job.labels,
            display_name=request.training_job.display_name,
        )
        job.create_time.GetCurrentTime()
        job.update_time.GetCurrentTime()
        job.progress.queue_position = 1
        bare = job.name.removeprefix("trainingJobs/")
        self.jobs[bare], self.owners[bare] = job, call_context().tenant
        self.by_request_id[key] = bare
        return job

    async def GetTrainingJob(self, request: Any, context: Any) -> training_job_pb2.TrainingJob:
        self._enter("GetTrainingJob", request)
        return self._own(request.name)

    async def ListTrainingJobs(self, request: Any, context: Any) -> training_service_pb2.ListTrainingJobsResponse:
        self._enter("ListTrainingJobs", request)
        own = [i for i in sorted(self.jobs, reverse=True) if self.owners[i] == call_context().tenant]
        own = [i for i in own if not request.states or self.jobs[i].state in request.states]
        own = [i for i in own if all(self.jobs[i].labels.get(k) == v for k, v in request.labels.items())]
        own = [i for i in own if not request.page_token or i < request.page_token]
        size = request.page_size or 20
        token = own[size - 1] if len(own) > size else ""
        page = [self.jobs[i] for i in own[:size]]
        return training_service_pb2.ListTrainingJobsResponse(training_jobs=page, next_page_token=token)

    def _steer(self, name: str, action: str) -> training_job_pb2.TrainingJob:
        """By the rules of every job store, with their errors."""
        job = self._own(name)
        before = JobState(job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_"))
        move = TRANSITIONS[action].get(before)
        if move is None:
            raise illegal_transition(name.removeprefix("trainingJobs/"), before, action)
        job.state = job_pb2.JobState.Value(f"JOB_STATE_{move.to.value}")
        return job

    async def CancelTrainingJob(self, request: Any, context: Any) -> training_job_pb2.TrainingJob:
        self._enter("CancelTrainingJob", request)
        return self._steer(request.name, "cancel")

    async def PauseTrainingJob(self, request: Any, context: Any) -> training_job_pb2.TrainingJob:
        self._enter("PauseTrainingJob", request)
        return self._steer(request.name, "pause")

    async def ResumeTrainingJob(self, request: Any, context: Any) -> training_job_pb2.TrainingJob:
        self._enter("ResumeTrainingJob", request)
        return self._steer(request.name, "resume")

    async def ListTrainingJobEvents(self, request: Any, context: Any) -> job_pb2.ListJobEventsResponse:
        self._enter("ListTrainingJobEvents", request)
        self._own(request.name)
        events = self._behind(request.name, request.page_token, newest_first=request.newest_first)
        size = request.page_size or 100
        token = events[size - 1].cursor if len(events) > size else ""
        return job_pb2.ListJobEventsResponse(events=events[:size], next_page_token=token)

    async def WatchTrainingJob(self, request: Any, context: Any) -> AsyncIterator[job_pb2.JobEvent]:
        self._enter("WatchTrainingJob", request)
        self._own(request.name)
        for event in self._behind(request.name, request.after_cursor):
            yield event

    def _behind(self, name: str, cursor: str, *, newest_first: bool = False) -> list[job_pb2.JobEvent]:
        events = self.events.get(name.removeprefix("trainingJobs/"), [])
        events = events[::-1] if newest_first else events
        places = [i for i, event in enumerate(events) if event.cursor == cursor]
        return events[places[0] + 1 :] if places else list(events)

    async def ListTrainingCheckpoints(
        self, request: Any, context: Any
    ) -> training_service_pb2.ListTrainingCheckpointsResponse:
        self._enter("ListTrainingCheckpoints", request)
        self._own(request.name)
        kept = self.checkpoints.get(request.name.removeprefix("trainingJobs/"), [])
        return training_service_pb2.ListTrainingCheckpointsResponse(checkpoints=kept)

    async def ListBaseModels(self, request: Any, context: Any) -> training_service_pb2.ListBaseModelsResponse:
        self._enter("ListBaseModels", request)
        models = [
            training_service_pb2.BaseModel(
                name=name, source="a package", parameter_count=135_000_000, license="Apache-2.0"
            )
            for name in self.base_models
        ]
        return training_service_pb2.ListBaseModelsResponse(base_models=models)

    async def CreateMergeJob(self, request: Any, context: Any) -> merge_job_pb2.MergeJob:
        self._enter("CreateMergeJob", request)
        job = merge_job_pb2.MergeJob(name=f"mergeJobs/{new_id()}", spec=request.merge_job.spec)
        job.state = job_pb2.JOB_STATE_QUEUED
        job.create_time.GetCurrentTime()
        self.merges[job.name] = job
        return job

    async def GetMergeJob(self, request: Any, context: Any) -> merge_job_pb2.MergeJob:
        self._enter("GetMergeJob", request)
        if request.name not in self.merges:
            raise unknown_job(request.name.removeprefix("mergeJobs/"))
        return self.merges[request.name]

    async def ListMergeJobs(self, request: Any, context: Any) -> merge_service_pb2.ListMergeJobsResponse:
        self._enter("ListMergeJobs", request)
        return merge_service_pb2.ListMergeJobsResponse(merge_jobs=list(self.merges.values()))

    async def WatchMergeJob(self, request: Any, context: Any) -> AsyncIterator[job_pb2.JobEvent]:
        self._enter("WatchMergeJob", request)
        yield job_pb2.JobEvent(cursor="1-0", message="merging")

    def say(self, job_id: str, *events: job_pb2.JobEvent) -> None:
        """Add events to a job; cursors and times are filled in."""
        bare = job_id.removeprefix("ftjob-")
        known = self.events.setdefault(bare, [])
        for event in events:
            event.cursor = f"{1000 + len(known)}-0"
            event.create_time.GetCurrentTime()
            known.append(event)

    def finish(self, job_id: str, **result: Any) -> training_job_pb2.TrainingJob:
        """Let a job succeed."""
        job = self.jobs[job_id.removeprefix("ftjob-")]
        job.state = job_pb2.JOB_STATE_SUCCEEDED
        job.end_time.GetCurrentTime()
        job.result.MergeFrom(training_job_pb2.TrainingResult(**result))
        return job


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
