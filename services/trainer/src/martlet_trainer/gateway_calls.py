"""Calls of a training's process at the gateway, with its service token (ADR 0011). A gateway that is away is waited for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

import urllib3
from martlet_core.backoff import GaveUp, retry_unavailable
from martlet_core.errors import PermissionDenied, Unavailable
from martlet_core.recipe import ShouldStop, StopRequested
from martlet_core.service_tokens import has_ended

T = TypeVar("T")

#: Longest time that no answer may come before the attempt ends, in seconds; the job's next attempt goes on from its checkpoint.
PATIENCE_SECONDS = 600.0
#: Questions that are under way at a time.
_PARALLEL = 16
_MAX_BODY_BYTES = 256 * 1024 * 1024
_SHOWN_CHARACTERS = 500
#: What is worth another try: nobody is there, all are busy, or a model is on its way.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_REFUSED = frozenset({401, 403})
_TICK_SECONDS = 0.1


@dataclass(frozen=True)
class Refused:
    """A status that another try doesn't change, and the gateway's words."""

    status: int
    message: str


class TokenEnded(Exception):
    """The job's token is over: this attempt can ask no more."""


class Gateway:
    """The gateway, for one tenant.

    Args:
        base_url: ends in ``/v1``.
        token: the job's service token.
        should_stop: looked at while waiting.
    """

    def __init__(self, base_url: str, token: str, should_stop: ShouldStop) -> None:
        self._base_url = base_url.rstrip("/")
        self._token = token
        self._given_up = threading.Event()
        self._should_stop = should_stop
        self._pool = urllib3.PoolManager(
            maxsize=_PARALLEL,
            retries=False,
            timeout=urllib3.Timeout(connect=10.0, read=PATIENCE_SECONDS),
            headers={"authorization": f"Bearer {token}", "content-type": "application/json"},
        )

    def model(self, name: str) -> Mapping[str, Any] | Refused:
        """What the gateway knows of a model. Raises as ``post``."""
        return self._patiently(f"looking up {name}", partial(self._send, "GET", f"models/{quote(name, safe='')}", None))

    def post(self, route: str, body: Mapping[str, Any], what: str) -> Mapping[str, Any] | Refused:
        """An answer of a route.

        Args:
            route: behind ``/v1/``.
            body: JSON-ready.
            what: the work, for people.

        Raises:
            StopRequested: the job is to stop.
            Unavailable: no answer came for ``PATIENCE_SECONDS``.
            PermissionDenied: the gateway doesn't take the job's token.
        """
        return self._patiently(what, partial(self._send, "POST", route, json.dumps(body).encode()))

    def together(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """What calls return, made beside one another. StopRequested once the job is to stop, also while an answer is under way. The first
        error ends it all: what else is under way is given up, and nothing more can be asked.
        """
        threads = ThreadPoolExecutor(max(1, min(_PARALLEL, len(calls))), thread_name_prefix="gateway")
        try:
            pending = futures = [threads.submit(call) for call in calls]
            while pending:
                done, rest = wait(pending, _TICK_SECONDS, return_when="FIRST_EXCEPTION")
                for future in done:
                    future.result()
                if rest and self._should_stop():
                    raise StopRequested
                pending = list(rest)
            return [future.result() for future in futures]
        except BaseException:
            self._given_up.set()
            raise
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _patiently(self, what: str, call: Callable[[], T]) -> T:
        deadline = time.monotonic() + PATIENCE_SECONDS
        last: list[Unavailable] = []

        def once() -> T:
            try:
                return call()
            except Unavailable as error:
                last[:] = [error]
                raise

        try:
            return retry_unavailable(what, once, give_up=lambda: self._must_stop() or time.monotonic() > deadline)
        except TokenEnded:
            raise Unavailable(
                "The job's token for the gateway is over; the next attempt gets a new one.",
                reason="GATEWAY_UNAVAILABLE",
            ) from None
        except GaveUp:
            if self._must_stop():
                raise StopRequested from None
            said = f" Its last word: {last[0].message}" if last else ""
            raise Unavailable(
                f"The gateway at {self._base_url} gave no answer for {PATIENCE_SECONDS:.0f} s ({what}).{said}",
                reason="GATEWAY_UNAVAILABLE",
            ) from None

    def _must_stop(self) -> bool:
        return self._should_stop() or self._given_up.is_set()

    def _send(self, method: str, route: str, data: bytes | None) -> Mapping[str, Any] | Refused:
        try:
            response = self._pool.request(
                method, f"{self._base_url}/{route}", body=data, redirect=False, preload_content=False
            )
            content = response.read(_MAX_BODY_BYTES, decode_content=True)
            response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"{type(error).__name__}: {error}", reason="GATEWAY_UNAVAILABLE") from error
        if response.status in _REFUSED:
            if has_ended(self._token):  # the next attempt has a new one; see where tries end
                raise TokenEnded
            raise PermissionDenied(
                f"The gateway at {self._base_url} refuses the trainer (HTTP {response.status}); both need the same MARTLET_INTERNAL_TOKEN.",
                reason="INTERNAL_TOKEN_REQUIRED",
            )
        if response.status in _PASSING:
            raise Unavailable(f"HTTP {response.status}: {_message(content)}", reason="GATEWAY_UNAVAILABLE")
        if response.status != 200:
            return Refused(response.status, _message(content))
        try:
            values = json.loads(content)
        except ValueError:
            values = None
        return values if isinstance(values, dict) else Refused(200, f"no JSON object: {_message(content)}")


def _message(content: bytes) -> str:
    """What OpenAI's error envelope says, or the body's beginning."""
    try:
        return str(json.loads(content)["error"]["message"])[:_SHOWN_CHARACTERS]
    except (ValueError, KeyError, TypeError):
        return content[:_SHOWN_CHARACTERS].decode(errors="replace")
