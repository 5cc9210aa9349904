"""The deployment under test, through the stock ``docker compose`` command."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROJECT = "martlet-e2e"
FILES = ("docker-compose.yml", "docker-compose.cpu.yml", "tests/e2e/compose.local-images.yml")


class Failed(AssertionError):
    """A check that didn't hold; the message says what was seen."""


def check(holds: bool, message: str) -> None:
    """Raise Failed with the message unless it holds."""
    if not holds:
        raise Failed(message)


def output(*argv: str, env: Mapping[str, str] | None = None, timeout: float = 120.0) -> str:
    """What a command prints; Failed with its last words if it fails."""
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    check(done.returncode == 0, f"`{' '.join(argv)}` failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


@dataclass(frozen=True)
class Stack:
    """One compose project.

    Attributes:
        environment: variables of the compose files, beside those of this process.
        log: takes what the commands print.
        files: compose files, relative to the repository.
    """

    environment: Mapping[str, str]
    log: Path
    files: Sequence[str] = FILES

    def argv(self, *arguments: str) -> list[str]:
        """The whole command line of a compose command."""
        named = [word for file in self.files for word in ("-f", file)]
        return ["docker", "compose", "-p", PROJECT, *named, *arguments]

    @property
    def environ(self) -> dict[str, str]:
        """The whole environment of the commands."""
        ours = {
            name: value for name, value in os.environ.items() if not name.startswith(("MARTLET_", "COMPOSE_", "S3_"))
        }
        return ours | {"COMPOSE_IGNORE_ORPHANS": "1", "BUILDKIT_PROGRESS": "plain"} | dict(self.environment)

    def run(self, *arguments: str, nice: bool = False, timeout: float = 3600.0) -> float:
        """Run a compose command; returns its seconds. Failed, with the end of its output, if it fails."""
        begun = time.monotonic()
        argv = [*(["nice", "-n", "10"] if nice else []), *self.argv(*arguments)]
        with open(self.log, "ab") as log:
            log.write(f"\n$ docker compose {' '.join(arguments)}\n".encode())
            log.flush()
            seen = log.tell()
            done = subprocess.run(
                argv, cwd=ROOT, env=self.environ, stdout=log, stderr=log, timeout=timeout, check=False
            )
        if done.returncode:
            said = self.log.read_bytes()[seen:].decode(errors="replace")[-3000:]
            raise Failed(f"`docker compose {' '.join(arguments)}` ended with {done.returncode}:\n{said}")
        return time.monotonic() - begun

    def capture(self, *arguments: str) -> str:
        """What a compose command prints."""
        return output(*self.argv(*arguments), env=self.environ)

    def containers(self, service: str = "", *, every: bool = False) -> list[dict[str, Any]]:
        """``docker inspect`` of the running containers, oldest first; ended ones too with ``every``."""
        filters = ["--filter", f"label=com.docker.compose.project={PROJECT}"]
        if service:
            filters += ["--filter", f"label=com.docker.compose.service={service}"]
        ids = output("docker", "ps", "--quiet", "--no-trunc", *(["--all"] if every else []), *filters).split()
        found = json.loads(output("docker", "inspect", *ids)) if ids else []
        return sorted(found, key=lambda container: container["Created"])

    def leftovers(self) -> list[str]:
        """What of this project the engine still holds: containers, volumes, networks."""
        found = []
        for kind in ("container", "volume", "network"):
            every = ["--all"] if kind == "container" else []
            label = f"label=com.docker.compose.project={PROJECT}"
            names = output("docker", kind, "ls", *every, "--quiet", "--filter", label).split()
            found += [f"{kind} {name}" for name in names]
        return found


def service_of(container: Mapping[str, Any]) -> str:
    """The compose service a container belongs to."""
    return container["Config"]["Labels"]["com.docker.compose.service"]
