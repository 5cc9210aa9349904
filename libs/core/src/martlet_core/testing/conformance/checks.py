"""What trials are made of: expectations of calls, pages, streams and standard services."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from martlet_core.testing.conformance.failures import RpcFailure
from martlet_core.testing.conformance.rules import RuleBroken, Skipped, Target

T = TypeVar("T")

_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")


def require(condition: object, broken: str) -> None:
    """RuleBroken with that text unless the condition holds."""
    if not condition:
        raise RuleBroken(broken)


async def expect_error(what: str, call: Awaitable[Any], *codes: str) -> RpcFailure:
    """The failure of a call that must fail with one of ``codes``, a text for people and an ErrorInfo."""
    try:
        answer = await call
    except grpc.RpcError as error:
        failure = RpcFailure.of(error)
    else:
        raise RuleBroken(f"{what}: answered {_short(answer)}; expected {' or '.join(codes)}")
    require(failure.code in codes, f"{what}: failed with {failure}; expected {' or '.join(codes)}")
    require(failure.message, f"{what}: {failure.code} without a message")
    require(failure.info, f"{what}: {failure.code} without a google.rpc.ErrorInfo")
    reason = failure.info.reason if failure.info else ""
    require(_REASON.fullmatch(reason), f"{what}: the reason {reason!r} is not UPPER_SNAKE_CASE")
    return failure


async def expect_bad_field(what: str, call: Awaitable[Any], field_end: str) -> None:
    """The call must fail with INVALID_ARGUMENT and a BadRequest that names a field ending with ``field_end``."""
    failure = await expect_error(what, call, "INVALID_ARGUMENT")
    fields = ", ".join(failure.fields) or "none"
    named = any(name == field_end or name.endswith("." + field_end) for name in failure.fields)
    require(named, f"{what}: the BadRequest must name the field `{field_end}`; it names {fields}")
    require(all(failure.fields.values()), f"{what}: a field violation has no description")


async def read_all(stream: AsyncIterator[T]) -> list[T]:
    """Everything a stream gives, to its end."""
    return [item async for item in stream]


async def eventually(what: str, probe: Callable[[], Awaitable[T | None]], *, seconds: float) -> T:
    """The first answer of ``probe`` that isn't None; RuleBroken when none came in time."""
    deadline = time.monotonic() + seconds
    while True:
        answer = await probe()
        if answer is not None:
            return answer
        require(time.monotonic() < deadline, f"{what}: not within {seconds:g} s")
        await asyncio.sleep(0.05)


async def check_pages(
    what: str,
    list_page: Callable[[int, str], Awaitable[tuple[Sequence[str], str]]],
    *,
    page_size: int = 1,
    at_most: int = 50,
) -> None:
    """Walking in small pages must give what one large page gives, without repeats."""
    whole, _ = await list_page(1000, "")
    seen: list[str] = []
    token = ""
    while len(seen) < min(len(whole), at_most):
        names, token = await list_page(page_size, token)
        require(len(names) <= page_size, f"{what}: page_size {page_size} gave {len(names)} entries")
        seen += names
        if not token:
            break
    require(seen == list(whole)[: len(seen)], f"{what}: pages give {seen}, one large page {list(whole)}")
    require(len(seen) == min(len(whole), at_most), f"{what}: the pages end after {len(seen)} of {len(whole)} entries")


async def check_list(what: str, list_page: Callable[[int, str], Awaitable[tuple[Sequence[str], str]]]) -> Sequence[str]:
    """The names on a list that is not empty: each its own, and in pages."""
    names, _ = await list_page(1000, "")
    require(names and all(names), f"{what} gives {names}")
    require(len(set(names)) == len(names), f"{what}: names are not unique: {names}")
    await check_pages(what, list_page)
    await expect_bad_field(f"{what} with page_size 1001", list_page(1001, ""), "page_size")
    return names


# Standard services of every contract


async def check_health(target: Target, service: str) -> None:
    """``grpc.health.v1`` answers SERVING, for the whole server and for the service, without any metadata."""
    channel: Any = target.channel  # the stubs serve both kinds of channel; their types know only one
    stub: Any = health_pb2_grpc.HealthStub(channel)
    for name in ("", service):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=target.timeout_seconds)
        state = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        require(answer.status == health_pb2.HealthCheckResponse.SERVING, f"health of {name!r} is {state}")


async def check_reflection(target: Target, service: str) -> None:
    """Server reflection, where there is any, lists the service."""
    channel: Any = target.channel
    # One request: on the wire that is a server stream. Called as the stream of requests that it is declared as, a refusal
    # that crosses the first message reaches gRPC's asyncio client as INTERNAL of its own making (1 in 20 calls).
    ask = channel.unary_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    try:
        answers = await read_all(ask(request, **target.call_options))
    except grpc.RpcError as error:
        failure = RpcFailure.of(error)
        if failure.code in ("UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED"):
            raise Skipped(f"no reflection here ({failure.code})") from None
        raise
    names = [entry.name for answer in answers for entry in answer.list_services_response.service]
    require(service in names, f"reflection lists {names}")


def _short(message: Any) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= 200 else text[:200] + "..."
