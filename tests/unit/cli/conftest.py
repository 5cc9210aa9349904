"""A gateway of canned answers, and the command run against it in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from martlet_cli.__main__ import main


@dataclass(frozen=True)
class Request:
    """A request that reached the gateway; ``body`` is JSON where it was JSON."""

    method: str
    path: str
    body: Any


@dataclass
class GatewayDouble:
    """Answers by ``METHOD /path`` (without the query): JSON, or a function of the request that gives it.

    Attributes:
        answers: what to say; a list is said one after the other, its last item for good.
        requests: what came.
    """

    answers: dict[str, Any] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def answer(self, request: Request) -> tuple[int, Any]:
        """Status and body."""
        self.requests.append(request)
        key = f"{request.method} {request.path.partition('?')[0]}"
        if key not in self.answers:
            return 404, {"error": {"message": f"no answer for {key}", "type": "x", "param": None, "code": "not_found"}}
        said = self.answers[key]
        if isinstance(said, list):
            said = said.pop(0) if len(said) > 1 else said[0]
        return 200, said(request) if callable(said) else said

    def bodies(self, path: str) -> list[Any]:
        """Bodies of the POSTs to a path."""
        return [request.body for request in self.requests if (request.method, request.path) == ("POST", path)]


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayDouble]:
    """A gateway that the command finds by its environment."""
    double = GatewayDouble()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            data = self.rfile.read(int(self.headers.get("content-length", 0)))
            is_json = self.headers.get("content-type", "").startswith("application/json")
            status, body = double.answer(
                Request(self.command, self.path, json.loads(data) if is_json and data else data)
            )
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("MARTLET_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("MARTLET_API_KEY", "mk-test")
    yield double
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass(frozen=True)
class Ran:
    """What a command printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its one JSON value."""
        return json.loads(self.out)


@pytest.fixture
def martlet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs the command in this process."""

    def run(*argv: str) -> Ran:
        try:
            code = main(["--home", str(tmp_path / "home"), *argv])
        except SystemExit as left:
            code = int(left.code or 0)
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return run
