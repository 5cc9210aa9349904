"""The gateway as the commands see it: the stock ``openai`` client where it serves, plain HTTP for ``/v1/martlet``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from martlet_core.errors import (
    Aborted,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    MartletError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

from martlet_cli.layout import Layout, read_json

if TYPE_CHECKING:  # takes a second to import: commands that don't call the gateway start without it
    import openai

#: HTTP status -> error; the gateway's own table read backwards.
_ERRORS_BY_STATUS: dict[int, type[MartletError]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: FailedPrecondition,
    412: Aborted,
    413: ResourceExhausted,
    422: InvalidArgument,
    429: ResourceExhausted,
    503: Unavailable,
}


@dataclass(frozen=True)
class Connection:
    """Where the gateway is and who we are.

    Attributes:
        base_url: ends in ``/v1``, as the stock client wants it.
        api_key: the tenant's key.
    """

    base_url: str
    api_key: str

    @classmethod
    def discover(cls, layout: Layout) -> Connection:
        """``MARTLET_BASE_URL`` and ``MARTLET_API_KEY``; what isn't set there comes from what ``martlet up`` wrote.

        Raises:
            FailedPrecondition: if neither says it.
        """
        written = read_json(layout.client_file)
        base_url = os.environ.get("MARTLET_BASE_URL") or written.get("base_url")
        api_key = os.environ.get("MARTLET_API_KEY") or written.get("api_key")
        if not base_url:
            raise FailedPrecondition(
                "no gateway is known: start one with `martlet up`, or set MARTLET_BASE_URL and MARTLET_API_KEY"
            )
        if not api_key:
            raise FailedPrecondition(
                "no API key is known: set MARTLET_API_KEY (an operator makes keys with `martlet keys create`)"
            )
        base_url = base_url.rstrip("/")
        return cls(base_url if base_url.endswith("/v1") else f"{base_url}/v1", api_key)


class Gateway:
    """A connection to the gateway. Errors are ``martlet_core.errors``."""

    def __init__(self, connection: Connection, *, timeout_seconds: float = 600.0) -> None:
        self.connection = connection
        self._timeout_seconds = timeout_seconds

    @cached_property
    def openai(self) -> openai.OpenAI:
        """The stock client; wrap its calls in ``translated``."""
        import openai

        return openai.OpenAI(
            base_url=self.connection.base_url, api_key=self.connection.api_key, timeout=self._timeout_seconds
        )

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"{self.connection.base_url}/martlet",
            headers={"Authorization": f"Bearer {self.connection.api_key}"},
            timeout=httpx.Timeout(self._timeout_seconds, connect=5.0),
        )

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Call a route under ``/v1/martlet`` and return its JSON."""
        with translated():
            response = self._http.request(method, path, **arguments)
            _raise_for(response)
            return response.json() if response.content else None

    def text(self, path: str) -> str:
        """What a route under ``/v1/martlet`` answers, as text."""
        with translated():
            response = self._http.get(path)
            _raise_for(response)
            return response.text

    def download(self, path: str, target: Path) -> int:
        """Write what a route answers to a file; returns the bytes. The file appears when it is complete."""
        partial = target.with_name(target.name + ".part")
        target.parent.mkdir(parents=True, exist_ok=True)
        with translated(), self._http.stream("GET", path) as response:
            if response.is_error:
                response.read()
            _raise_for(response)
            with open(partial, "wb") as stream:
                for chunk in response.iter_bytes():
                    stream.write(chunk)
        partial.rename(target)
        return target.stat().st_size


@contextmanager
def translated() -> Iterator[None]:
    """Turn what the clients raise into ``martlet_core.errors``."""
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        raise _error(error.status_code, error.body, error.response.headers.get("x-request-id")) from error
    except openai.APIConnectionError as error:
        raise _silent(str(error.__cause__ or error)) from error
    except httpx.TransportError as error:
        raise _silent(str(error) or type(error).__name__) from error


def _silent(reason: str) -> Unavailable:
    return Unavailable(f"the gateway doesn't answer ({reason}); `martlet status` shows what runs")


def _raise_for(response: httpx.Response) -> None:
    if response.is_error:
        try:
            body = response.json()
        except ValueError:
            body = {}
        raise _error(response.status_code, body, response.headers.get("x-request-id"))


def _error(status: int, body: Any, request_id: str | None) -> MartletError:
    """The error that an OpenAI-shaped body describes."""
    body = body if isinstance(body, dict) else {}
    inner = body.get("error", body)
    inner = inner if isinstance(inner, dict) else {"message": str(inner)}
    message = str(inner.get("message") or f"HTTP {status}")
    if inner.get("param") and str(inner["param"]) not in message:
        message = f"{inner['param']}: {message}"
    error = _ERRORS_BY_STATUS.get(status, Internal)
    reason = str(inner["code"]).upper() if inner.get("code") else None
    return error(message, reason=reason, metadata={"request_id": request_id} if request_id else None)
