"""Cold starts: the seconds from a container's start to its first healthy answer, as the engine tells of both."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from tests.e2e.stack import PROJECT, Stack, service_of

_SECOND = 1_000_000_000
#: Not `docker inspect`'s log of a health check: it keeps the last five entries alone, and the first healthy one is gone.
_EVENTS = (
    *("docker", "events", "--format", "{{json .}}", "--filter", "type=container"),
    *("--filter", "event=start", "--filter", "event=health_status"),
    *("--filter", f"label=com.docker.compose.project={PROJECT}"),
)


class Watch:
    """Listens to the engine while containers start.

    Attributes:
        seconds: by service, once it has ended; of several containers of one service, the slowest.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> Watch:
        self._out = tempfile.TemporaryFile("w+")
        # Events from now on, also those before it listens.
        argv = [*_EVENTS, "--since", f"{time.time():.3f}"]
        self._listener = subprocess.Popen(argv, stdout=self._out, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.5)  # the last event comes after `up --wait` has seen the container healthy, or just before
        self._listener.terminate()
        self._listener.wait(20)
        self._out.seek(0)
        self.seconds = _seconds([json.loads(line) for line in self._out if line.strip()])
        self._out.close()


def _seconds(events: list[Mapping[str, Any]]) -> dict[str, float]:
    started: dict[str, int] = {}
    found: dict[str, float] = {}
    healthy: set[str] = set()
    for event in sorted(events, key=lambda event: event["timeNano"]):
        container, action = event["Actor"]["ID"], event["Action"]
        if action == "start":
            started[container] = event["timeNano"]
            healthy.discard(container)
        elif action == "health_status: healthy" and container in started and container not in healthy:
            healthy.add(container)
            service = event["Actor"]["Attributes"]["com.docker.compose.service"]
            took = (event["timeNano"] - started[container]) / _SECOND
            found[service] = round(max(took, found.get(service, 0.0)), 1)
    return dict(sorted(found.items()))


def looked_at_every(stack: Stack) -> dict[str, float]:
    """By service, the seconds between two looks at a container that isn't healthy yet: what a figure may be too large by."""
    return {
        service_of(container): container["Config"]["Healthcheck"]["StartInterval"] / _SECOND
        for container in stack.containers()
    }
