"""A reward service in plain Python: ``python serve.py [PORT]``. Put your own judgement into ``reward``."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def reward(prompt: list[dict[str, Any]], completion: str, row: dict[str, Any]) -> float:
    """What an answer is worth: here, the share of its characters that are small letters."""
    return sum(character.islower() for character in completion) / max(1, len(completion))


class Handler(BaseHTTPRequestHandler):
    """Answers POST with a number for each completion."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        triples = zip(asked["prompts"], asked["completions"], asked["rows"], strict=True)
        body = json.dumps({"rewards": [reward(*triple) for triple in triples]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8090), Handler)
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()
