"""Rewards from services outside, by HTTP or gRPC, as functions: recipes know nothing of the wire.

A service that can't be reached is asked again, with pauses, until it answers or the job is to stop: no reward is ever made up.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import urllib3
from martlet.trainer.v1 import reward_service_pb2, reward_service_pb2_grpc
from martlet_core.backoff import GaveUp, retry_unavailable
from martlet_core.errors import FailedPrecondition, Unavailable
from martlet_core.recipe import ShouldStop, StopRequested
from martlet_core.rpc.client import MESSAGE_OPTIONS

from martlet_trainer.recipes.options import RewardServiceOptions
from martlet_trainer.rewards import Answer, Rewards

#: Longest time that a service may be away before the attempt ends, in seconds; the job's next attempt goes on from its checkpoint.
PATIENCE_SECONDS = 600.0
_MAX_BODY_BYTES = 16 * 1024 * 1024
_SHOWN_CHARACTERS = 200
#: What is worth another try: the service is away, overloaded or broken for now.
_PASSING_HTTP = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING_GRPC = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)

#: Asks a service once. Raises Unavailable where another try may help.
Ask = Callable[[Sequence[Answer]], Any]


def connect(services: Sequence[RewardServiceOptions], should_stop: ShouldStop) -> Mapping[str, Rewards]:
    """The services as rewards by name, which raise FailedPrecondition for an answer that is none, and Unavailable after
    ``PATIENCE_SECONDS`` without one.

    Args:
        services: as asked for.
        should_stop: looked at while a service is away; the reward then raises StopRequested.
    """
    return {service.name: _rewards(service, should_stop) for service in services}


def _rewards(service: RewardServiceOptions, should_stop: ShouldStop) -> Rewards:
    ask = _http(service) if service.url else _grpc(service)
    what = f"reward service {service.name} ({service.where})"

    def rewards(answers: Sequence[Answer]) -> Sequence[float]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            found = retry_unavailable(
                what, lambda: ask(answers), give_up=lambda: should_stop() or time.monotonic() > deadline
            )
        except GaveUp:
            if should_stop():
                raise StopRequested from None
            raise Unavailable(
                f"The {what} didn't answer for {PATIENCE_SECONDS:.0f} s.", reason="REWARD_SERVICE_UNAVAILABLE"
            ) from None
        return _checked(found, len(answers), what)

    return rewards


def _checked(found: Any, count: int, what: str) -> list[float]:
    """The rewards, if they are as many finite numbers as there are answers."""
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != count:
        given = len(found) if isinstance(found, Sequence) and not isinstance(found, str) else type(found).__name__
        raise FailedPrecondition(
            f"The {what} gave {given} rewards for {count} answers.", reason="REWARD_SERVICE_FAILED"
        )
    for index, value in enumerate(found):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise FailedPrecondition(
                f"The {what} gave {value!r:.80} for answer {index}; it must be a finite number.",
                reason="REWARD_SERVICE_FAILED",
            )
    return [float(value) for value in found]


def _http(service: RewardServiceOptions) -> Ask:
    pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=service.timeout_seconds))

    def ask(answers: Sequence[Answer]) -> Any:
        body = {
            "prompts": [list(answer.prompt) for answer in answers],
            "completions": [answer.text for answer in answers],
            "rows": [dict(answer.columns) for answer in answers],
        }
        try:
            response = pool.request("POST", str(service.url), json=body, redirect=False, preload_content=False)
            data = response.read(_MAX_BODY_BYTES, decode_content=True)
            response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"{type(error).__name__}", reason="REWARD_SERVICE_UNAVAILABLE") from error
        return _read(response.status, data, service)

    return ask


def _read(status: int, data: bytes, service: RewardServiceOptions) -> Any:
    shown = data[:_SHOWN_CHARACTERS].decode(errors="replace")
    if status in _PASSING_HTTP:
        raise Unavailable(f"HTTP {status}: {shown}", reason="REWARD_SERVICE_UNAVAILABLE")
    if status != 200:
        raise FailedPrecondition(
            f"The reward service {service.name} ({service.where}) answered HTTP {status}: {shown}",
            reason="REWARD_SERVICE_FAILED",
        )
    try:
        return json.loads(data)["rewards"]
    except (ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(
            f'The reward service {service.name} ({service.where}) answered no JSON object with "rewards": {shown}',
            reason="REWARD_SERVICE_FAILED",
        ) from error


def _grpc(service: RewardServiceOptions) -> Ask:
    channel = grpc.insecure_channel(str(service.address), options=MESSAGE_OPTIONS)
    stub = reward_service_pb2_grpc.RewardServiceStub(channel)

    def ask(answers: Sequence[Answer]) -> Any:
        request = reward_service_pb2.ScoreRequest()
        for answer in answers:
            completion = request.completions.add(text=answer.text)
            completion.row.update(answer.columns)
            for turn in answer.prompt:
                completion.prompt.add().update(turn)
        try:
            return list(stub.Score(request, timeout=service.timeout_seconds).rewards)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()  # type: ignore[attr-defined]
            if code in _PASSING_GRPC:
                raise Unavailable(f"{code.name}: {details}", reason="REWARD_SERVICE_UNAVAILABLE") from error
            raise FailedPrecondition(
                f"The reward service {service.name} ({service.where}) answered {code.name}: {details}",
                reason="REWARD_SERVICE_FAILED",
            ) from error

    return ask
