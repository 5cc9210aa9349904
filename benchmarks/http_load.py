"""A load generator for OpenAI-shaped chat routes: one process, raw HTTP/1.1 over kept-alive connections, nothing between it and the socket.

    python benchmarks/http_load.py --url http://127.0.0.1:8000 --model echo --concurrency 16 --requests 1000 [--stream]

Each of ``concurrency`` connections sends one request after the other. Prints JSON: requests/s, latency and time to the first byte of
the body in milliseconds (p50, p95, p99), and errors. A status other than 200, a cut connection or an answer without its end is an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

import uvloop


@dataclass
class Outcome:
    """What a run measured; times in milliseconds."""

    requests: int
    errors: int
    seconds: float
    requests_per_second: float
    latency_ms: dict[str, float]
    first_byte_ms: dict[str, float]
    held_at_once: int
    error_samples: list[str] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """One kept-alive connection with one request in flight."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self._head = bytearray()
        self._in_body = False
        self._chunked = False
        self._left = 0
        self._tail = b""
        self.first_byte = 0.0
        self.status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionError("the connection was cut"))

    async def request(self, data: bytes) -> None:
        """Send a request and wait for the end of its answer."""
        assert self.transport is not None
        if self.transport.is_closing():
            raise ConnectionError("the connection was cut")
        self._done = asyncio.get_running_loop().create_future()
        self._head.clear()
        self._in_body = False
        self.first_byte = 0.0
        self.transport.write(data)
        await self._done

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = bytes(self._head[:end]).lower(), bytes(self._head[end + 4 :])
            self.status = int(head[9:12])
            self._chunked = b"transfer-encoding: chunked" in head
            self._left = 0
            if not self._chunked:
                start = head.index(b"content-length:") + 15
                self._left = int(head[start:].split(b"\r\n", 1)[0])
            self._in_body, self._tail = True, b""
        if not data:
            return
        if not self.first_byte:
            self.first_byte = time.perf_counter()
        if self._chunked:
            self._tail = (self._tail + data)[-7:]
            if self._tail.endswith(b"\r\n0\r\n\r\n"):
                self._finish()
        else:
            self._left -= len(data)
            if self._left <= 0:
                self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


@dataclass
class Load:
    """What to send where."""

    url: str
    model: str
    concurrency: int
    requests: int
    stream: bool
    max_tokens: int
    key: str
    timeout: float

    def request(self) -> bytes:
        """The bytes of one request."""
        parts = urlsplit(self.url)
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": "The quick brown fox jumps over the lazy dog."}],
            "max_tokens": self.max_tokens,
        }
        if self.stream:
            body["stream"] = True
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {self.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data


async def run(load: Load) -> Outcome:
    """Send the load and measure."""
    loop = asyncio.get_running_loop()
    parts = urlsplit(load.url)
    connections = [Connection() for _ in range(load.concurrency)]
    for connection in connections:
        await loop.create_connection(lambda c=connection: c, parts.hostname, parts.port)
    data = load.request()
    latencies: list[float] = []
    first_bytes: list[float] = []
    errors: list[str] = []
    left = load.requests
    flying = held = 0

    async def worker(connection: Connection) -> None:
        nonlocal left, flying, held
        while left > 0:
            left -= 1
            started = time.perf_counter()
            flying += 1
            held = max(held, flying)
            try:
                async with asyncio.timeout(load.timeout):
                    await connection.request(data)
            except (OSError, TimeoutError) as error:
                errors.append(f"{type(error).__name__}: {error}")
                flying -= 1
                return
            flying -= 1
            if connection.status != 200:
                errors.append(f"HTTP {connection.status}")
                continue
            latencies.append(time.perf_counter() - started)
            first_bytes.append(connection.first_byte - started)

    began = time.perf_counter()
    await asyncio.gather(*(worker(connection) for connection in connections))
    seconds = time.perf_counter() - began
    for connection in connections:
        if connection.transport is not None:
            connection.transport.close()
    return Outcome(
        requests=len(latencies),
        errors=len(errors),
        seconds=round(seconds, 3),
        requests_per_second=round(len(latencies) / seconds, 1),
        latency_ms=percentiles(latencies),
        first_byte_ms=percentiles(first_bytes),
        held_at_once=held,
        error_samples=sorted(set(errors))[:5],
    )


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds; empty when there is nothing."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {f"p{p}": round(ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] * 1000, 3) for p in (50, 95, 99)}


def main() -> int:
    """Read the command line, run, print JSON."""
    parser = argparse.ArgumentParser(description="Load on an OpenAI-shaped chat route.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--key", default="none")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds a request may take")
    load = Load(**vars(parser.parse_args()))
    print(json.dumps(asdict(uvloop.run(run(load)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
