"""The RPC helpers over a real channel: four kinds of method, errors both ways, context, token, health, stopping."""

from __future__ import annotations

import asyncio
import importlib
import logging
import pkgutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import martlet
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from martlet.trainer.v1 import training_job_pb2, training_service_pb2, training_service_pb2_grpc
from martlet_core import errors
from martlet_core.rpc.client import (
    READ_METHODS,
    call_metadata,
    error_from_rpc,
    open_channel,
    timeout_seconds,
    translate_errors,
)
from martlet_core.rpc.context import REQUEST_ID_KEY, CallContext, call_context, set_call_context
from martlet_core.rpc.server import GrpcServer, Service
from martlet_core.rpc.status import from_status, to_status

SERVICE = "martlet.test.v1.EchoService"


class Echo:
    """Answers on all four kinds of method; ``raise:<CODE>`` makes it fail."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.started = asyncio.Event()
        self.attempts = 0

    @staticmethod
    def answer(text: str) -> StringValue:
        if text.startswith("raise:"):
            raise sample_error(text.removeprefix("raise:"))
        context = call_context()
        return StringValue(value=f"{text}|{context.tenant}|{context.request_id}")

    async def UnaryUnary(self, request: StringValue, context: grpc.aio.ServicerContext) -> StringValue:
        if request.value == "bug":
            raise ValueError("secret detail")
        if request.value == "remaining":
            return StringValue(value=str(timeout_seconds(100.0)))
        return self.answer(request.value)

    def Sync(self, request: StringValue, context: grpc.aio.ServicerContext) -> StringValue:
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)  # what generated base classes do
        raise NotImplementedError("Method not implemented!")

    async def UnaryStream(self, request: StringValue, context: grpc.aio.ServicerContext) -> AsyncIterator[StringValue]:
        yield StringValue(value="first")
        yield self.answer(request.value)

    async def WatchForever(self, request: StringValue, context: grpc.aio.ServicerContext) -> AsyncIterator[StringValue]:
        try:
            yield StringValue(value="first")
            self.started.set()
            await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def Forever(self, request: StringValue, context: grpc.aio.ServicerContext) -> AsyncIterator[StringValue]:
        try:
            while True:
                yield StringValue(value="more")
        finally:
            self.closed.set()

    async def StreamUnary(self, requests: AsyncIterator[StringValue], context: grpc.aio.ServicerContext) -> StringValue:
        return self.answer("".join([r.value async for r in requests]))

    async def StreamStream(
        self, requests: AsyncIterator[StringValue], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield self.answer(request.value)


def add_echo(servicer: Echo, server: grpc.aio.Server) -> None:
    codec = {"request_deserializer": StringValue.FromString, "response_serializer": StringValue.SerializeToString}
    handlers = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(servicer.UnaryUnary, **codec),
        "Sync": grpc.unary_unary_rpc_method_handler(servicer.Sync, **codec),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(servicer.UnaryStream, **codec),
        "WatchForever": grpc.unary_stream_rpc_method_handler(servicer.WatchForever, **codec),
        "Forever": grpc.unary_stream_rpc_method_handler(servicer.Forever, **codec),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(servicer.StreamUnary, **codec),
        "StreamStream": grpc.stream_stream_rpc_method_handler(servicer.StreamStream, **codec),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def sample_error(code: str) -> errors.MartletError:
    return errors.ERRORS_BY_CODE[code](
        f"what is wrong with {code}, ünïcode too",
        reason="SOME_REASON",
        metadata={"close_matches": "a,b"},
        violations=[errors.FieldViolation("spec.model", "no such model")] if code == "INVALID_ARGUMENT" else (),
        retry_after_seconds=1.5 if code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED") else None,
    )


class Client:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        codec = {"request_serializer": StringValue.SerializeToString, "response_deserializer": StringValue.FromString}
        self.malformed = [channel.unary_unary(f"/{SERVICE}/{kind}") for kind in ("UnaryUnary", "UnaryStream")]
        self.unary_unary = channel.unary_unary(f"/{SERVICE}/UnaryUnary", **codec)
        self.sync = channel.unary_unary(f"/{SERVICE}/Sync", **codec)
        self.missing = channel.unary_unary(f"/{SERVICE}/Missing", **codec)
        self.unary_stream = channel.unary_stream(f"/{SERVICE}/UnaryStream", **codec)
        self.watch = channel.unary_stream(f"/{SERVICE}/WatchForever", **codec)
        self.forever = channel.unary_stream(f"/{SERVICE}/Forever", **codec)
        self.stream_unary = channel.stream_unary(f"/{SERVICE}/StreamUnary", **codec)
        self.stream_stream = channel.stream_stream(f"/{SERVICE}/StreamStream", **codec)

    async def call(self, kind: str, text: str, **options) -> str:
        """The last message that the method answers with."""
        request = StringValue(value=text)
        if kind == "unary_unary":
            return (await self.unary_unary(request, **options)).value
        if kind == "stream_unary":
            return (await self.stream_unary(iter([request]), **options)).value
        stream = (
            self.unary_stream(request, **options)
            if kind == "unary_stream"
            else self.stream_stream(iter([request]), **options)
        )
        return [message.value async for message in stream][-1]


@asynccontextmanager
async def serving(echo: Echo | None = None, **options):
    echo = echo or Echo()
    server = GrpcServer("127.0.0.1:0", [Service(add_echo, echo, SERVICE)], **options)
    port = await server.start()
    channel = open_channel(f"127.0.0.1:{port}")
    try:
        yield Client(channel), server, echo
    finally:
        await channel.close()
        await server.stop(0)


KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


@pytest.mark.parametrize("kind", KINDS)
async def test_errors_arrive_as_they_were_raised(kind: str) -> None:
    async with serving() as (client, _, _):
        for code, cls in errors.ERRORS_BY_CODE.items():
            with pytest.raises(cls) as caught:
                async with translate_errors():
                    await client.call(kind, f"raise:{code}")
            assert caught.value.to_dict() == sample_error(code).to_dict()


@pytest.mark.parametrize("kind", KINDS)
async def test_context_reaches_the_method(kind: str) -> None:
    async with serving() as (client, _, _):
        metadata = call_metadata(tenant="acme", request_id="req-1")
        assert await client.call(kind, "hello", metadata=metadata) == "hello|acme|req-1"


async def test_request_id_is_made_and_returned() -> None:
    async with serving() as (client, _, _):
        call = client.unary_unary(StringValue(value="x"))
        _, tenant, request_id = (await call).value.split("|")
        assert tenant == "default"
        assert request_id
        assert dict(await call.trailing_metadata())[REQUEST_ID_KEY] == request_id


async def test_context_is_handed_on_and_limits_the_time_out() -> None:
    async with serving() as (client, _, _):
        set_call_context(CallContext("acme", "req-2"))
        assert (await client.unary_unary(StringValue(value="x"), metadata=call_metadata())).value == "x|acme|req-2"
        remaining = float((await client.unary_unary(StringValue(value="remaining"), timeout=5)).value)
        assert 3 < remaining < 6
        assert float((await client.unary_unary(StringValue(value="remaining"))).value) == 100.0


async def test_bad_tenant_is_refused() -> None:
    async with serving() as (client, _, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.unary_unary(StringValue(value="x"), metadata=call_metadata(tenant="../other"))
        assert error_from_rpc(caught.value).reason == "INVALID_TENANT"


async def test_a_bug_is_internal_and_its_text_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (client, _, _):
        with pytest.raises(errors.Internal) as caught, translate_errors():
            await client.unary_unary(StringValue(value="bug"), metadata=call_metadata(request_id="req-3"))
        assert "secret" not in caught.value.message
        assert "req-3" in caught.value.message
        assert any("secret detail" in str(r.exc_info) for r in caplog.records if r.exc_info)


async def test_bytes_that_are_no_message_are_the_callers_fault() -> None:
    async with serving() as (client, _, _):
        for call in client.malformed:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"\xff\xff")
            assert error_from_rpc(caught.value).reason == "MALFORMED_REQUEST"


async def test_unimplemented_methods() -> None:
    async with serving() as (client, _, _):
        for method in (client.sync, client.missing):
            with pytest.raises(errors.Unimplemented):
                async with translate_errors():
                    await method(StringValue(value="x"))


async def test_upstream_errors_pass_through() -> None:
    """A method that calls another service and lets its error go answers with that very error."""
    async with serving() as (upstream, _, _):

        class Proxy(Echo):
            async def UnaryUnary(self, request, context):
                return await upstream.unary_unary(request)

        async with serving(Proxy()) as (client, _, _):
            with pytest.raises(errors.NotFound) as caught:
                async with translate_errors():
                    await client.call("unary_unary", "raise:NOT_FOUND")
            assert caught.value.to_dict() == sample_error("NOT_FOUND").to_dict()


async def test_internal_token() -> None:
    async with serving(internal_token="s3cret") as (client, _, _):
        for wrong in ("", "s3cre", "wrong"):
            with pytest.raises(errors.Unauthenticated):
                async with translate_errors():
                    await client.call("unary_stream", "x", metadata=call_metadata(internal_token=wrong))
        assert (
            await client.call("unary_stream", "x", metadata=call_metadata(request_id="r", internal_token="s3cret"))
            == "x|default|r"
        )
        health = health_pb2_grpc.HealthStub(client.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING


async def test_authenticate_decides_the_tenant() -> None:
    async def authenticate(method, metadata):
        assert method == f"/{SERVICE}/UnaryUnary"
        if metadata.get("authorization") != "Bearer k":
            raise errors.Unauthenticated("No such key.")
        return "from-key"

    async with serving(authenticate=authenticate) as (client, _, _):
        spoof = call_metadata(tenant="victim", request_id="r")
        assert await client.call("unary_unary", "x", metadata=(*spoof, ("authorization", "Bearer k"))) == "x|from-key|r"
        with pytest.raises(errors.Unauthenticated):
            async with translate_errors():
                await client.call("unary_unary", "x", metadata=spoof)


async def test_health_and_reflection() -> None:
    async with serving() as (client, server, _):
        health = health_pb2_grpc.HealthStub(client.channel)
        assert (
            await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        ).status == health_pb2.HealthCheckResponse.SERVING
        await server.set_serving(SERVICE, False)
        assert (
            await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        ).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(client.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = [a async for a in reflection.ServerReflectionInfo(iter([request]))]
        assert SERVICE in {s.name for s in answers[0].list_services_response.service}


async def test_a_client_that_goes_away_closes_the_generator_at_once() -> None:
    async with serving() as (client, _, echo):
        stream = client.forever(StringValue(value="x"))
        assert (await stream.read()).value == "more"
        stream.cancel()
        await asyncio.wait_for(echo.closed.wait(), 5)


async def test_stop_ends_watches_and_lets_calls_finish() -> None:
    release = asyncio.Event()

    class Slow(Echo):
        async def UnaryUnary(self, request, context):
            self.started.set()
            await release.wait()
            return StringValue(value="done")

    async with serving(Slow()) as (client, server, echo):
        watch = client.watch(StringValue(value="x"))
        await watch.read()
        await echo.started.wait()
        echo.started.clear()
        call = asyncio.ensure_future(client.call("unary_unary", "x"))
        await echo.started.wait()
        stop = asyncio.ensure_future(server.stop(30))
        with pytest.raises(errors.Unavailable) as caught:
            async with translate_errors():
                await asyncio.wait_for(watch.read(), 5)
        assert caught.value.reason == "SERVER_STOPPING"
        assert not stop.done()
        release.set()
        assert await call == "done"
        await asyncio.wait_for(stop, 5)


async def test_a_taken_port_is_refused() -> None:
    first = GrpcServer("127.0.0.1:0", [])
    port = await first.start()
    with pytest.raises(errors.FailedPrecondition, match=str(port)):
        await GrpcServer(f"127.0.0.1:{port}", []).start()
    await first.stop(0)


async def test_nobody_there_is_unavailable() -> None:
    channel = open_channel("127.0.0.1:1")
    with pytest.raises(errors.Unavailable):
        async with translate_errors():
            await Client(channel).call("unary_unary", "x", timeout=5)
    await channel.close()


async def test_reads_are_repeated_and_writes_are_not() -> None:
    calls: dict[str, int] = {"get": 0, "create": 0}

    class Flaky(training_service_pb2_grpc.TrainingServiceServicer):
        async def GetTrainingJob(self, request, context):
            calls["get"] += 1
            if calls["get"] < 3:
                raise errors.Unavailable("Not now.")
            return training_job_pb2.TrainingJob(name=request.name)

        async def CreateTrainingJob(self, request, context):
            calls["create"] += 1
            raise errors.Unavailable("Not now.")

    add = training_service_pb2_grpc.add_TrainingServiceServicer_to_server
    server = GrpcServer("127.0.0.1:0", [Service(add, Flaky(), "martlet.trainer.v1.TrainingService")])
    channel = open_channel(f"127.0.0.1:{await server.start()}")
    stub = training_service_pb2_grpc.TrainingServiceStub(channel)
    answer = await stub.GetTrainingJob(training_service_pb2.GetTrainingJobRequest(name="trainingJobs/x"))
    assert answer.name == "trainingJobs/x"
    with pytest.raises(errors.Unavailable):
        async with translate_errors():
            await stub.CreateTrainingJob(training_service_pb2.CreateTrainingJobRequest())
    assert calls == {"get": 3, "create": 1}
    await channel.close()
    await server.stop(0)


async def test_one_log_line_a_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving() as (client, _, _):
        await client.call("unary_unary", "x")
        with pytest.raises(grpc.aio.AioRpcError):
            await client.call("unary_unary", "raise:NOT_FOUND")
    lines = [r for r in caplog.records if r.message == "rpc"]
    assert [(r.__dict__["method"], r.__dict__["code"]) for r in lines] == [
        (f"/{SERVICE}/UnaryUnary", "OK"),
        (f"/{SERVICE}/UnaryUnary", "NOT_FOUND"),
    ]
    assert all(r.__dict__["duration_ms"] >= 0 for r in lines)


def test_statuses_fit_into_metadata_and_say_what_was_cut() -> None:
    many = [errors.FieldViolation(f"rows[{i}]", "ж" * 300) for i in range(500)]
    status = to_status(errors.InvalidArgument("ж" * 5000, violations=many, metadata={"k": "v" * 5000}))
    assert status.ByteSize() < 5000
    assert status.message.endswith("...")
    back = from_status(status)
    kept = len(back.violations) - 1
    assert kept >= 1
    assert back.violations[-1].description == f"and {500 - kept} more"


def test_the_list_of_reads_is_complete() -> None:
    """Every Get and List method of every contract may be repeated, and nothing else is."""
    found: dict[str, set[str]] = {}
    for module in pkgutil.walk_packages(martlet.__path__, "martlet."):
        if module.name.endswith("_service_pb2"):
            for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
                reads = {m.name for m in service.methods if m.name.startswith(("Get", "List"))}
                found[service.full_name] = reads
    assert {name: set(methods) for name, methods in READ_METHODS.items()} == {n: m for n, m in found.items() if m}
