"""Secrets from files, signs of life, and the command that health checks of containers run."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from martlet_core import alive
from martlet_core.errors import FailedPrecondition
from martlet_core.health import main
from martlet_core.rpc.server import GrpcServer
from martlet_core.settings import CoreSettings


def test_any_setting_may_be_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("redis://:pass@valkey:6379/0\n")
    monkeypatch.setenv("MARTLET_REDIS_URL_FILE", str(secret))
    assert CoreSettings().redis_url == "redis://:pass@valkey:6379/0"  # type: ignore[call-arg]
    monkeypatch.setenv("MARTLET_REDIS_URL", "redis://other:6379/0")
    assert CoreSettings().redis_url == "redis://other:6379/0", "the variable itself wins"  # type: ignore[call-arg]


def test_a_secret_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARTLET_S3_SECRET_KEY_FILE", "/nowhere/key")
    with pytest.raises(FailedPrecondition, match="MARTLET_S3_SECRET_KEY_FILE: /nowhere/key can't be read"):
        CoreSettings()  # type: ignore[call-arg]


def test_a_file_is_touched_while_its_process_works(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    looked = threading.Event()

    def works() -> bool:
        looked.set()
        return True

    with alive.touching(path, works):
        assert looked.wait(10)
        while not path.exists():
            pass
        assert main(["file", str(path), "30"]) == 0
        os.utime(path, (0, 0))
        assert main(["file", str(path), "30"]) == 1
    assert not path.exists()
    assert main(["file", str(path), "30"]) == 1


def test_nothing_is_touched_for_a_process_that_stands_still(tmp_path: Path) -> None:
    with alive.touching(tmp_path / "alive", lambda: False):
        pass
    with alive.touching(None):
        pass
    assert list(tmp_path.iterdir()) == []


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def test_a_page_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert main(["http", f"http://127.0.0.1:{server.server_port}/healthz"]) == 0
            assert main(["http", f"http://127.0.0.1:{server.server_port}/readyz"]) == 1
        finally:
            server.shutdown()
            thread.join()
    assert "503" in capsys.readouterr().err
    assert main(["http", f"http://127.0.0.1:{server.server_port}/healthz"]) == 1


async def test_a_server_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    import asyncio

    server = GrpcServer("127.0.0.1:0", [], internal_token="secret")
    address = f"127.0.0.1:{await server.start()}"
    assert await asyncio.to_thread(main, ["grpc", address]) == 0, "health needs no token"
    await server.set_serving("", False)
    assert await asyncio.to_thread(main, ["grpc", address]) == 1
    assert "NOT_SERVING" in capsys.readouterr().err
    await server.stop(0)
    assert await asyncio.to_thread(main, ["grpc", address]) == 1


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["file", "x"], ["http"]])
def test_wrong_calls_are_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "martlet_core.health grpc" in capsys.readouterr().err
