"""Registration with a gateway that is really there, goes away, forgets, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from martlet.gateway.v1 import replica_pb2
from martlet.gateway.v1 import replica_service_pb2_grpc as service_grpc
from martlet.inference.v1 import inference_pb2 as pb
from martlet.inference.v1 import inference_service_pb2_grpc as inference_grpc
from martlet_core.errors import NotFound, Unavailable
from martlet_core.rpc.client import call_metadata, open_channel
from martlet_core.rpc.server import GrpcServer, Service
from martlet_inference.registration import Registration
from martlet_inference.replica import Replica
from martlet_inference.settings import InferenceSettings
from martlet_inference.testing import BASE, MemorySource, RecordingEngine, adapter, chat_request


@dataclass
class Gateway(service_grpc.ReplicaServiceServicer):
    """A gateway's ReplicaService that remembers replicas until told to forget them."""

    known: dict[str, replica_pb2.Replica] = field(default_factory=dict)
    registered: int = 0
    log: list[tuple[str, replica_pb2.Replica]] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def _note(self, what: str, replica: replica_pb2.Replica) -> None:
        self.log.append((what, replica))
        async with self.news:
            self.news.notify_all()

    async def RegisterReplica(self, request: Any, context: Any) -> replica_pb2.Replica:
        self.registered += 1
        replica = replica_pb2.Replica()
        replica.CopyFrom(request.replica)
        replica.name = f"replicas/{self.registered}"
        self.known[replica.name] = replica
        await self._note("register", replica)
        return replica

    async def RenewReplica(self, request: Any, context: Any) -> replica_pb2.Replica:
        if request.replica.name not in self.known:
            raise NotFound("the lease has lapsed")
        self.known[request.replica.name] = request.replica
        await self._note("renew", request.replica)
        return request.replica

    async def DeregisterReplica(self, request: Any, context: Any) -> Empty:
        replica = self.known.pop(request.name)
        await self._note("deregister", replica)
        return Empty()

    async def until(self, condition: Any) -> None:
        """Wait until a condition on this gateway holds."""
        async with asyncio.timeout(10), self.news:
            await self.news.wait_for(condition)


@asynccontextmanager
async def running(gateway: Gateway, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    service = Service(service_grpc.add_ReplicaServiceServicer_to_server, gateway, "martlet.gateway.v1.ReplicaService")
    server = GrpcServer(address, [service], internal_token="token")
    port = await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def registration(address: str, seconds: float = 0.05) -> Registration:
    async def describe(name: str) -> replica_pb2.Replica:
        return replica_pb2.Replica(name=name, address="127.0.0.1:1", engine="echo")

    return Registration(address, describe, renew_seconds=seconds, internal_token="token")


async def test_it_registers_renews_and_deregisters(gateway: Gateway) -> None:
    async with running(gateway) as address:
        made = registration(address)
        made.start()
        await gateway.until(lambda: [what for what, _ in gateway.log].count("renew") >= 2)
        assert made.name == "replicas/1"
        assert gateway.log[-1][1].name == "replicas/1"
        await made.stop()
        assert gateway.log[-1][0] == "deregister"
        assert gateway.registered == 1


async def test_a_change_is_told_at_once(gateway: Gateway) -> None:
    async with running(gateway) as address:
        made = registration(address, seconds=3600)
        made.start()
        await gateway.until(lambda: gateway.registered == 1)
        made.changed()
        await gateway.until(lambda: gateway.log[-1][0] == "renew")
        await made.stop()


async def test_a_gateway_that_forgot_it_gets_it_again(gateway: Gateway) -> None:
    async with running(gateway) as address:
        made = registration(address)
        made.start()
        await gateway.until(lambda: gateway.registered == 1)
        gateway.known.clear()
        await gateway.until(lambda: gateway.registered == 2)
        await gateway.until(lambda: gateway.log[-1][0] == "renew")
        assert made.name == "replicas/2"
        await made.stop()


async def test_it_outlives_a_gateway_that_is_away(gateway: Gateway) -> None:
    async with running(gateway) as address:
        pass
    made = registration(address)
    with pytest.raises(Unavailable):
        await made.report()
    made.start()
    async with running(gateway, address):
        await gateway.until(lambda: gateway.registered == 1)
        await made.stop()


def settings(**values: Any) -> InferenceSettings:
    return InferenceSettings(
        engine="echo", model=BASE.name, grpc_address="127.0.0.1:0", internal_token="token", renew_seconds=0.05, **values
    )


async def test_a_replica_tells_its_models_and_drains(
    gateway: Gateway, engine: RecordingEngine, source: MemorySource
) -> None:
    """From not ready without a model, to ready with it and an adapter, to draining, to gone."""
    source.models.clear()  # not published yet
    async with running(gateway) as address:
        replica = Replica(settings(gateway_address=address, drain_seconds=10), engine, source)
        await replica.start()
        await gateway.until(lambda: gateway.registered == 1)
        assert not gateway.log[0][1].ready
        assert gateway.log[0][1].address == f"127.0.0.1:{replica.port}"

        source.publish(BASE, adapter("ft:1"))
        await gateway.until(lambda: gateway.log[-1][1].ready)
        assert [model.name for model in gateway.log[-1][1].models] == [BASE.name]
        assert gateway.log[-1][1].models[0].state == pb.MODEL_STATE_READY

        channel = open_channel(f"127.0.0.1:{replica.port}")
        stub = inference_grpc.InferenceServiceStub(channel)
        metadata = call_metadata(internal_token="token")
        call = stub.CallOpenAI(chat_request("ft:1", stream=True, max_tokens=200_000), metadata=metadata)
        await call.read()
        await gateway.until(lambda: [model.name for model in gateway.log[-1][1].models] == [BASE.name, "ft:1"])

        stopping = asyncio.create_task(replica.stop())
        await gateway.until(lambda: gateway.log[-1][1].draining)
        assert not gateway.log[-1][1].ready
        assert gateway.known
        call.cancel()
        await stopping
        assert gateway.log[-1][0] == "deregister"
        assert not gateway.known
        await channel.close()
