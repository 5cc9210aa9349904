"""A whole platform for tests and benchmarks: started as a user starts it, on free ports, in a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from martlet_cli.layout import read_json

#: Variables of the person who runs the tests that would point the command at another platform.
_FOREIGN = ("MARTLET_BASE_URL", "MARTLET_API_KEY", "MARTLET_REDIS_URL", "MARTLET_S3_ENDPOINT")


@dataclass(frozen=True)
class RunningPlatform:
    """A platform and how to speak to it."""

    home: Path

    @property
    def base_url(self) -> str:
        """Ends in ``/v1``."""
        return read_json(self.home / "client.json")["base_url"]

    @property
    def api_key(self) -> str:
        """The key that the first start made."""
        return read_json(self.home / "client.json")["api_key"]

    @property
    def grpc_address(self) -> str:
        """The gateway's gRPC side."""
        return f"127.0.0.1:{read_json(self.home / 'state.json')['ports']['grpc']}"

    @property
    def client(self) -> openai.OpenAI:
        """The stock client."""
        return openai.OpenAI(base_url=self.base_url, api_key=self.api_key, timeout=120)

    def martlet(self, *argv: str, code: int = 0, timeout: float = 300) -> Any:
        """Run a command with ``--json``; returns what it printed, parsed.

        Args:
            argv: the command and its arguments.
            code: the exit code that it must have.
            timeout: seconds.
        """
        done = self.run(*argv, "--json", timeout=timeout)
        assert done.returncode == code, (
            f"martlet {' '.join(argv)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return lines[0] if len(lines) == 1 else lines

    def run(self, *argv: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command as a program would: not at a terminal."""
        environ = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
        return subprocess.run(
            [sys.executable, "-m", "martlet_cli", "--home", str(self.home), *argv],
            env=environ,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


@contextmanager
def running_platform(home: Path, *arguments: str, stages: str = "trainer") -> Iterator[RunningPlatform]:
    """A platform in the background; the whole start-up is the user's own. Stopped at the end.

    Args:
        home: its directory.
        arguments: of ``martlet up``.
        stages: job stages that it has.
    """
    platform = RunningPlatform(home)
    try:
        ports = ("--http-port", "0", "--grpc-port", "0")
        done = platform.run("up", "--detach", *ports, "--stages", stages, *arguments, timeout=600)
        assert done.returncode == 0, f"martlet up failed:\n{done.stdout}\n{done.stderr}"
        yield platform
    finally:
        done = platform.run("down")
        assert done.returncode == 0, f"martlet down failed:\n{done.stdout}\n{done.stderr}"
