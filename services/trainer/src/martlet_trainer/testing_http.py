"""An HTTP server for tests, a gateway or a reward service: it says what it is told to."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ScriptedServer:
    """Gives one answer after the other, the last one again and again; remembers path, authorization and body of what it was asked.

    Args:
        answers: status and body each; a body is a text, JSON-ready values, or made of the request's by a function.
    """

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        script, scripted = list(answers), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self._say(body)

            def do_GET(self) -> None:
                self._say(None)

            def _say(self, body: Any) -> None:
                scripted.asked.append((self.path, self.headers["authorization"], body))
                status, answer = script.pop(0) if len(script) > 1 else script[0]
                said = answer(body) if callable(answer) else answer
                data = (said if isinstance(said, str) else json.dumps(said)).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                if status == 302:
                    self.send_header("location", "/elsewhere")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> ScriptedServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
