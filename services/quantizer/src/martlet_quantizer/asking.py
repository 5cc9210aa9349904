"""One request to the gateway over HTTP, which can be broken off at any moment. Standard library alone: the families' locks
have no HTTP client in common.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_POLL_SECONDS = 0.1
_LEAST_SECONDS = 1.0


class BrokenOff(Exception):
    """The caller's ``give_up`` became true."""


class OutOfTime(Exception):
    """The caller's deadline passed."""


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        status: HTTP status.
        body: the JSON object; empty if it was none.
        retry_after_seconds: when to try again, where the answer says so.
    """

    status: int
    body: Mapping[str, Any]
    retry_after_seconds: float | None

    @property
    def message(self) -> str:
        """What an error says."""
        error = self.body.get("error")
        return str(error.get("message")) if isinstance(error, dict) else f"status {self.status}"


def ask(
    method: str,
    url: str,
    *,
    key: str,
    body: Mapping[str, Any] | None = None,
    deadline: float,
    give_up: Callable[[], bool],
) -> Answer:
    """Make a request and wait for its answer.

    Args:
        method: of HTTP.
        url: ``http`` or ``https``.
        key: shown as ``Authorization: Bearer``.
        body: sent as JSON.
        deadline: moment (``time.monotonic()``) until which the answer is waited for; the other side is told.
        give_up: ends the request at once; the connection is closed, so that the other side stops working too.

    Raises:
        BrokenOff: ``give_up()`` became true.
        OutOfTime: the deadline passed.
        OSError: the other side can't be reached, or broke off.
    """
    remaining = max(_LEAST_SECONDS, deadline - time.monotonic())
    request = _Request(method, url, key, body, remaining)
    thread = threading.Thread(target=request.run, name="ask-gateway", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        if not thread.is_alive():
            break
        if give_up():
            request.hang_up()
            raise BrokenOff
        if time.monotonic() > deadline:
            request.hang_up()
            raise OutOfTime
    return request.outcome()


@dataclass
class _Request:
    method: str
    url: str
    key: str
    body: Mapping[str, Any] | None
    timeout_seconds: float
    _connection: http.client.HTTPConnection = field(init=False)
    _answer: Answer | None = None
    _error: Exception | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        made = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = made(parts.hostname or "", parts.port, timeout=self.timeout_seconds)
        self._path = parts.path

    def run(self) -> None:
        """Send the request and read the answer, in a thread of its own."""
        headers = {
            "authorization": f"Bearer {self.key}",
            "content-type": "application/json",
            "x-stainless-read-timeout": f"{self.timeout_seconds:.0f}",  # how long the gateway may wait for a placement
        }
        try:
            data = None if self.body is None else json.dumps(self.body)
            self._connection.request(self.method, self._path, data, headers)
            response = self._connection.getresponse()
            self._answer = _answer(response.status, response.getheader("retry-after"), response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._error = error
        finally:
            self._connection.close()

    def hang_up(self) -> None:
        """Close the connection under the thread's feet."""
        connected = self._connection.sock
        with suppress(OSError, AttributeError):
            connected.shutdown(socket.SHUT_RDWR)

    def outcome(self) -> Answer:
        """The answer, once the thread is over. Raises as ``ask`` does."""
        if self._answer is not None:
            return self._answer
        if isinstance(self._error, OSError):
            raise self._error
        raise ConnectionError(f"{type(self._error).__name__}: {self._error}") from self._error


def _answer(status: int, retry_after: str | None, data: bytes) -> Answer:
    try:
        body = json.loads(data)
    except ValueError:
        body = {}
    try:
        seconds = float(retry_after) if retry_after else None
    except ValueError:  # a date: nobody of ours sends one
        seconds = None
    return Answer(status, body if isinstance(body, dict) else {}, seconds)
