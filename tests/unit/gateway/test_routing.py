"""Which replica gets a request, and what happens when it fails."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import openai
import pytest
from martlet.gateway.v1 import replica_pb2, replica_service_pb2, replica_service_pb2_grpc
from martlet.inference.v1 import inference_pb2
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import DeadlineExceeded, MartletError, ResourceExhausted, Unavailable
from martlet_gateway.replicas import ReplicaView
from martlet_gateway.router import ReplicaStream
from martlet_gateway.testing.replica import scripted
from martlet_inference.testing import wait_until

MESSAGES: Any = [{"role": "user", "content": "one two"}]
READY = inference_pb2.MODEL_STATE_READY


async def ask(gateway: Any, model: str = "base", **fields: Any) -> Any:
    return await gateway.http().post("/v1/chat/completions", json={"model": model, "messages": MESSAGES, **fields})


async def test_least_busy_replica_is_asked(gateway: Any) -> None:
    async with scripted(gateway, "a") as a, scripted(gateway, "b") as b:
        a.gate.clear()
        b.gate.clear()
        asked = [asyncio.create_task(ask(gateway)) for _ in range(6)]
        await wait_until(lambda: a.calls + b.calls == 6)
        assert (a.calls, b.calls) == (3, 3)
        a.gate.set()
        b.gate.set()
        assert {(await task).status_code for task in asked} == {200}


async def test_reported_load_counts_and_own_requests_do_not_count_twice(gateway: Any) -> None:
    busy = inference_pb2.ReplicaLoad(active_requests=5)
    async with scripted(gateway, "a", load=busy) as a, scripted(gateway, "b") as b:
        for _ in range(3):
            await ask(gateway)
        assert (a.calls, b.calls) == (0, 3)


@pytest.mark.parametrize("error", [Unavailable("starting"), ResourceExhausted("full")])
@pytest.mark.parametrize("stream", [False, True])
async def test_another_replica_is_tried(
    gateway: Any, error: MartletError, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("martlet_gateway.router._AVOID_SECONDS", 60.0)  # the test must not depend on its own speed
    async with scripted(gateway, "a") as a, scripted(gateway, "b") as b:
        a.error = error
        for _ in range(4):
            assert (await ask(gateway, stream=stream)).status_code == 200
        assert b.calls == 4
        if isinstance(error, Unavailable):
            assert a.calls <= 1, "a replica that doesn't answer goes to the end of the line"


async def test_dead_replica_is_skipped_before_its_lease_ends(gateway: Any) -> None:
    async with scripted(gateway, "b") as b:
        async with scripted(gateway, "a"):
            pass  # its server is gone, its lease holds
        answers = [await ask(gateway) for _ in range(4)]
        assert [answer.json()["from"] for answer in answers] == ["b"] * 4
        assert b.calls == 4


async def test_when_all_fail_the_client_is_told_when_to_come_back(gateway: Any) -> None:
    async with scripted(gateway, "a") as a, scripted(gateway, "b") as b:
        a.error = b.error = ResourceExhausted("over capacity")
        answer = await ask(gateway)
        assert answer.status_code == 429
        assert answer.headers["retry-after"]


async def test_break_after_the_first_byte_is_said_in_the_stream(gateway: Any) -> None:
    async with scripted(gateway, "a") as a, scripted(gateway, "b") as b:
        a.break_after = b.break_after = 2
        answer = await ask(gateway, stream=True)
        assert answer.status_code == 200
        events = answer.text.strip().split("\n\n")
        assert events[:2] == ['data: {"n": 0}', 'data: {"n": 1}']
        assert '"error"' in events[2]
        assert "[DONE]" not in answer.text
        assert a.calls + b.calls == 1, "a request that was answered in part is not repeated"
        stream = await gateway.openai().chat.completions.create(model="base", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="the engine died"):
            await anext(chunk async for chunk in stream if chunk is None)


async def test_a_replica_that_dies_in_mid_stream_is_said_in_words(gateway: Any) -> None:
    """Not in those of the socket."""
    async with scripted(gateway, "a") as a:
        a.hang_after = 2
        stream = await gateway.openai().chat.completions.create(model="base", messages=MESSAGES, stream=True)
        first = asyncio.Event()

        async def read() -> None:
            async for _ in stream:
                first.set()

        reading = asyncio.create_task(read())
        await first.wait()
        await a.server.stop(0)
        with pytest.raises(openai.APIError, match="went away in the middle of its answer; what was sent is incomplete"):
            await reading


@pytest.mark.parametrize(
    ("code", "error", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable, "REPLICA_FAILED"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded, "DEADLINE_EXCEEDED"),
    ],
)
async def test_a_broken_connection_and_a_deadline_are_told_apart(
    code: grpc.StatusCode, error: type[MartletError], reason: str
) -> None:
    class Call:
        async def read(self) -> Any:
            raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "words of gRPC's own")

    stream = ReplicaStream(Call(), ReplicaView("a", "a:1", replica_pb2.Replica()), None)
    with pytest.raises(error) as caught:
        [message async for message in stream.rest()]
    assert caught.value.reason == reason


async def test_draining_and_unready_replicas_get_nothing(gateway: Any) -> None:
    async with (
        scripted(gateway, "a", draining=True) as a,
        scripted(gateway, "b") as b,
    ):
        assert (await ask(gateway)).json() == {"from": "b"}
        assert (a.calls, b.calls) == (0, 1)


async def test_replica_that_holds_the_adapter_is_preferred(gateway: Any, start_replica: Any, tools: Any) -> None:
    first, second = await start_replica(), await start_replica()
    model = PublishedModel("ft:x", "adapter", "acme", "a1", tools.base, lora_rank=8)
    tools.publish(gateway, second, model)
    tools.publish(gateway, first, model)
    await ask(gateway, "ft:x")
    await tools.until(gateway, lambda views: any("ft:x" in view.adapters for view in views))
    for _ in range(5):
        assert (await ask(gateway, "ft:x")).status_code == 200
    assert sorted([len(first.engine.adapters), len(second.engine.adapters)]) == [0, 1]


async def test_full_holder_gives_way(gateway: Any) -> None:
    """The one that holds the adapter is at its limit: the other takes the adapter too."""
    full = inference_pb2.ReplicaLoad(active_requests=4, max_requests=4)
    gateway.stores.models.publish(PublishedModel("ft:x", "adapter", "acme", "a1", "base", lora_rank=8))
    async with scripted(gateway, "a", load=full) as a, scripted(gateway, "b") as b:
        view = next(v for v in gateway.server.context.replicas.snapshot.replicas.values() if v.load == 4)
        proto = replica_pb2.Replica()
        proto.CopyFrom(view.proto)
        proto.models.add(name="ft:x", kind=inference_pb2.MODEL_KIND_ADAPTER, state=READY, base_model="base")
        await gateway.server.context.replicas.renew(proto)
        assert (await ask(gateway, "ft:x")).json() == {"from": "b"}
        assert (a.calls, b.calls) == (0, 1)


async def test_lapsed_lease_takes_a_replica_off(gateway: Any, start_replica: Any, tools: Any) -> None:
    replica = await start_replica()
    store = gateway.server.context.replica_store
    (view,) = gateway.server.context.replicas.snapshot.replicas.values()
    await store.remove(view.id)  # as if the lease had lapsed
    await tools.until(gateway, lambda views: not any(v.id == view.id for v in views))
    await tools.until(gateway, lambda views: any(v.address == replica.address for v in views))  # it registers again


async def test_replica_service_asks_for_the_internal_token(gateway: Any, tools: Any) -> None:
    stub: Any = replica_service_pb2_grpc.ReplicaServiceStub(gateway.channel())
    request = replica_service_pb2.RegisterReplicaRequest(replica=replica_pb2.Replica(address="127.0.0.1:1"))
    for metadata in ((), gateway.metadata(), (("x-martlet-internal-token", "wrong"),)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.RegisterReplica(request, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    metadata = (("x-martlet-internal-token", tools.token),)
    made = await stub.RegisterReplica(request, metadata=metadata)
    assert made.name.startswith("replicas/")
    assert made.expire_time.seconds >= int(time.time())
    again = await stub.RegisterReplica(request, metadata=metadata)
    listed = await stub.ListReplicas(replica_service_pb2.ListReplicasRequest(), metadata=metadata)
    assert [replica.name for replica in listed.replicas] == [again.name], "the same address takes the old one's place"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.RenewReplica(replica_service_pb2.RenewReplicaRequest(replica=made), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await stub.DeregisterReplica(replica_service_pb2.DeregisterReplicaRequest(name=again.name), metadata=metadata)
    assert not (await stub.ListReplicas(replica_service_pb2.ListReplicasRequest(), metadata=metadata)).replicas
