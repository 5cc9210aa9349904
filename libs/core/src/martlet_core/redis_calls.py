"""Connecting to Redis or Valkey the way all stores on it do, and its errors as ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from martlet_core.errors import Internal, Unavailable

DEFAULT_PREFIX = "martlet:"
CONNECT_TIMEOUT_SECONDS = 3.0
SOCKET_TIMEOUT_SECONDS = 10.0
HEALTH_CHECK_SECONDS = 15
#: Answers of a server that is there but can't serve now: disk full, background save failing, starting, failing over.
_UNAVAILABLE_PREFIXES = ("MISCONF", "LOADING", "MASTERDOWN", "NOREPLICAS", "BUSY", "TRYAGAIN", "CLUSTERDOWN")


def connect(url: str) -> redis.Redis:
    """A client of the server at ``redis://[user:password@]host:port/db`` (``rediss://``: TLS) that decodes answers and never
    sends a command twice. Connects later.
    """
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        encoding_errors="replace",
        protocol=2,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        socket_timeout=SOCKET_TIMEOUT_SECONDS,
        socket_keepalive=True,
        health_check_interval=HEALTH_CHECK_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


def send(command: Callable[[], Any]) -> Any:
    """Run a command of a client.

    Raises:
        Unavailable: the server can't be reached, or can't serve now.
        Internal: it refused the command.
    """
    try:
        return command()
    except (RedisConnectionError, RedisTimeoutError, OutOfMemoryError, ReadOnlyError) as error:
        raise _unavailable(error) from error
    except ResponseError as error:
        if str(error).startswith(_UNAVAILABLE_PREFIXES):
            raise _unavailable(error) from error
        raise Internal(f"The job store refused a command: {error}", reason="JOB_STORE_ERROR") from error
    except RedisError as error:
        raise Internal(f"The job store failed: {error}", reason="JOB_STORE_ERROR") from error


def _unavailable(error: RedisError) -> Unavailable:
    return Unavailable(
        f"The job store doesn't answer: {error}", reason="JOB_STORE_UNAVAILABLE", retry_after_seconds=1.0
    )
