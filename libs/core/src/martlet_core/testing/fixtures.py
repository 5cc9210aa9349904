"""pytest plugin: real servers, started once a session and only when a test asks for them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
import redis

from martlet_core.testing.servers import RunningServer, start_seaweedfs, start_valkey


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A Valkey shared by the session: don't stop it. Tests that kill servers start their own."""
    server = start_valkey(tmp_path_factory.mktemp("valkey"), append_only=False)
    yield server
    server.kill()


@pytest.fixture(scope="session")
def valkey_url(valkey_server: RunningServer) -> str:
    """URL of the session's Valkey, database 0. It isn't emptied; use ``redis_url`` for an empty one."""
    return valkey_server.url


@pytest.fixture
def redis_url(valkey_url: str) -> Iterator[str]:
    """URL of an empty database of the session's Valkey, emptied again after the test."""
    url = valkey_url.rsplit("/", 1)[0] + "/1"
    client = redis.Redis.from_url(url)
    client.flushdb()
    yield url
    client.flushdb()
    client.close()


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, str, str]]:
    """A SeaweedFS shared by the session, with its access key and secret key."""
    access_key, secret_key = "test", secrets.token_hex(16)
    server = start_seaweedfs(tmp_path_factory.mktemp("seaweedfs"), access_key, secret_key, bucket="martlet")
    yield server, access_key, secret_key
    server.kill()


@pytest.fixture(scope="session")
def s3_settings(seaweedfs_server: tuple[RunningServer, str, str]) -> dict[str, str]:
    """The ``s3_*`` settings of the session's object store; ``CoreSettings(**s3_settings)`` takes them."""
    server, access_key, secret_key = seaweedfs_server
    return {
        "s3_endpoint": server.url,
        "s3_access_key": access_key,
        "s3_secret_key": secret_key,
        "s3_bucket": "martlet",
    }
