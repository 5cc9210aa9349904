"""The local servers keep their data over a restart, however they ended."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from martlet_core.errors import FailedPrecondition, Unavailable
from martlet_core.local_servers import seaweedfs_command, valkey_command, wait_valkey
from martlet_core.testing.servers import start_valkey
from redis.backoff import NoBackoff
from redis.retry import Retry


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_valkey_keeps_its_data(tmp_path: Path, how: str) -> None:
    server = start_valkey(tmp_path / "valkey", password="pass word")
    redis.Redis.from_url(server.url).set("key", "value")
    getattr(server, how)()
    again = start_valkey(tmp_path / "valkey", port=server.port, password="pass word")
    try:
        assert redis.Redis.from_url(again.url).get("key") == b"value"
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=again.port, retry=Retry(NoBackoff(), 0)).ping()
    finally:
        again.kill()


def test_secrets_are_not_on_the_command_line(tmp_path: Path) -> None:
    valkey = valkey_command(tmp_path / "v", 7000, password="hidden")
    seaweedfs = seaweedfs_command(tmp_path / "s", 8333, "key", "hidden")
    assert "hidden" not in " ".join([*valkey.argv, *seaweedfs.argv])
    for path in (tmp_path / "v" / "valkey.conf", tmp_path / "s" / "s3.json"):
        assert "hidden" in path.read_text()
        assert path.stat().st_mode & 0o077 == 0


def test_a_server_that_ends_at_once_is_reported(tmp_path: Path) -> None:
    running = start_valkey(tmp_path / "one")
    try:
        with pytest.raises(Unavailable, match="exit code"):  # the port is taken
            start_valkey(tmp_path / "two", port=running.port)
    finally:
        running.kill()
    with pytest.raises(Unavailable, match="not ready"):
        wait_valkey(running.url, timeout_seconds=0.2)


def test_a_port_too_high_for_seaweedfs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="55535"):
        seaweedfs_command(tmp_path, 60000, "key", "secret")
