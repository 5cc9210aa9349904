"""``python -m martlet_core.health``: is a process of ours well? For the health checks of containers.

    python -m martlet_core.health grpc HOST:PORT     the standard health service says SERVING
    python -m martlet_core.health http URL           a GET is answered with a status under 400
    python -m martlet_core.health file PATH SECONDS  a worker touched its file within so many seconds (``alive``)

Exit code 0: well; 1: not well, with the reason on stderr; 2: wrongly called.
"""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_TIMEOUT_SECONDS = 10.0


def grpc_serving(address: str) -> str:
    """Ask a server's health service; returns what is wrong, empty if nothing is."""
    import grpc  # the other checks start several times faster without it
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    # A proxy that the environment names is for the outside.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods are made at run time
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            return f"{address}: {error.code().name}"  # type: ignore[attr-defined]
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return "" if name == "SERVING" else f"{address} is {name}"


def http_answers(url: str) -> str:
    """Ask for a page; returns what is wrong, empty if nothing is."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_SECONDS):
            return ""
    except (urllib.error.URLError, OSError, ValueError) as error:
        return f"{url}: {error}"


def file_touched(path: str, seconds: str) -> str:
    """Look at a file's time; returns what is wrong, empty if nothing is."""
    try:
        age = time.time() - Path(path).stat().st_mtime
    except OSError as error:
        return f"{path}: {error.strerror}"
    return "" if age <= float(seconds) else f"{path} was touched {age:.0f} s ago"


_CHECKS: Mapping[str, tuple[Callable[..., str], int]] = {
    "grpc": (grpc_serving, 1),
    "http": (http_answers, 1),
    "file": (file_touched, 2),
}


def main(arguments: Sequence[str]) -> int:
    """Check what the arguments name; returns the exit code."""
    kind, *rest = arguments or [""]
    check, count = _CHECKS.get(kind, (None, 0))
    if check is None or len(rest) != count:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    wrong = check(*rest)
    if wrong:
        print(wrong, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
