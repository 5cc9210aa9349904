"""What a check is, how one is run, and the rules that every contract shares.

A check is an async function that takes a target and raises ``RuleBroken`` when what answers breaks the rule, or
``Skipped`` when the rule can't be tried here. Its docstring states the rule.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

T = TypeVar("T")

_STATUS_KEY = "grpc-status-details-bin"
_RETRY_INFO = error_details_pb2.RetryInfo.DESCRIPTOR.full_name
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")


class RuleBroken(AssertionError):
    """What answers breaks a rule; the message says how."""


class Skipped(Exception):
    """The rule can't be tried on this target; the message says why."""


@dataclass(frozen=True)
class Target:
    """What is checked.

    Attributes:
        channel: an open channel to it.
        metadata: sent with every call (tenant, token).
        timeout_seconds: of a single call, and of waiting for a change.
    """

    channel: grpc.aio.Channel
    metadata: tuple[tuple[str, str], ...] = ()
    timeout_seconds: float = 30.0

    @property
    def call_options(self) -> dict[str, Any]:
        """Keyword arguments of every call."""
        return {"metadata": self.metadata, "timeout": self.timeout_seconds}


Check = Callable[[Any], Awaitable[None]]


class Outcome(str, Enum):
    """How a check came out. ``ERROR``: it couldn't be carried out, because a call failed that had to succeed."""

    PASSED = "passed"
    FAILED = "FAILED"
    SKIPPED = "skipped"
    ERROR = "ERROR"


@dataclass(frozen=True)
class CheckResult:
    """How one check came out.

    Attributes:
        name: the check's name.
        rule: the rule it states.
        outcome: how it came out.
        detail: what was wrong, or why it was skipped; empty when it passed.
        seconds: how long it took.
    """

    name: str
    rule: str
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """How all checks of a contract came out."""

    contract: str
    address: str
    results: Sequence[CheckResult] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        """Whether nothing failed. Skipped checks don't count, but at least one must have passed."""
        outcomes = {result.outcome for result in self.results}
        return Outcome.PASSED in outcomes and not outcomes & {Outcome.FAILED, Outcome.ERROR}

    def table(self) -> str:
        """The report as plain text: a line a check, with rule and detail below those that did not pass."""
        width = max((len(result.name) for result in self.results), default=0)
        lines = [f"{self.contract} at {self.address}", ""]
        for result in self.results:
            lines.append(f"{result.outcome.value:8}{result.name:{width}}  {result.seconds:6.2f} s")
            if result.outcome in (Outcome.FAILED, Outcome.ERROR):
                lines.append(f"{'':10}rule:  {result.rule}")
            if result.detail:
                lines.append(f"{'':10}why:   {result.detail}")
        counts = ", ".join(f"{self.count(outcome)} {outcome.value}" for outcome in Outcome if self.count(outcome))
        return "\n".join([*lines, "", f"{counts}: {'conforms' if self.passed else 'DOES NOT CONFORM'}"])

    def count(self, outcome: Outcome) -> int:
        """Checks that came out so."""
        return sum(result.outcome is outcome for result in self.results)


def check_name(check: Check) -> str:
    """The name of a check."""
    return getattr(check, "__name__", repr(check))


def rule_of(check: Check) -> str:
    """The rule that a check states, on one line."""
    return " ".join((inspect.getdoc(check) or "").split())


async def run_check(check: Check, target: Target) -> CheckResult:
    """Run one check; nothing that the target does escapes as an exception."""
    started = time.monotonic()
    outcome, detail = Outcome.PASSED, ""
    try:
        await check(target)
    except RuleBroken as error:
        outcome, detail = Outcome.FAILED, str(error)
    except Skipped as error:
        outcome, detail = Outcome.SKIPPED, str(error)
    except grpc.RpcError as error:
        outcome, detail = Outcome.ERROR, f"a call failed: {RpcFailure.of(error)}"
    except TimeoutError:
        outcome, detail = Outcome.ERROR, "no answer in time"
    return CheckResult(check_name(check), rule_of(check), outcome, detail, time.monotonic() - started)


async def assert_check(check: Check, target: Target) -> None:
    """Run one check as a test: raises RuleBroken with the rule when it isn't kept, and ``Skipped`` as it comes."""
    result = await run_check(check, target)
    if result.outcome is Outcome.SKIPPED:
        raise Skipped(result.detail)
    if result.outcome is not Outcome.PASSED:
        raise RuleBroken(f"{result.detail}\nrule: {result.rule}")


# What checks are made of


@dataclass(frozen=True)
class RpcFailure:
    """A failed call, read from the wire.

    Attributes:
        code: name of the gRPC status code.
        message: its text.
        info: the ErrorInfo detail; None without one.
        fields: field -> description of the BadRequest detail.
        retry_after: whether there is a RetryInfo detail.
    """

    code: str
    message: str
    info: error_details_pb2.ErrorInfo | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    retry_after: bool = False

    @classmethod
    def of(cls, error: grpc.RpcError) -> RpcFailure:
        """Read the failure of a call made with ``grpc.aio``."""
        call: Any = error
        details = [value for key, value in call.trailing_metadata() or () if key == _STATUS_KEY]
        status = status_pb2.Status.FromString(details[0]) if details else status_pb2.Status()
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        has_info, retry_after = False, False
        for detail in status.details:
            has_info = has_info or detail.Unpack(info)
            detail.Unpack(bad_request)
            retry_after = retry_after or detail.TypeName() == _RETRY_INFO
        fields = {violation.field: violation.description for violation in bad_request.field_violations}
        return cls(call.code().name, call.details() or "", info if has_info else None, fields, retry_after)

    def __str__(self) -> str:
        reason = f" ({self.info.reason})" if self.info else ""
        return f"{self.code}{reason}: {self.message}"


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


# Rules of every contract


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
