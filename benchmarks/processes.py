"""Child processes of a benchmark: started together, watched until they answer, stopped with it."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Processes:
    """Child processes that end with the benchmark."""

    directory: Path
    stack: ExitStack
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, name: str, argv: Sequence[str], environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process; its output goes to a file of its name."""
        log = self.stack.enter_context(self.log(name).open("wb"))
        process = subprocess.Popen(argv, env={**os.environ, **(environ or {})}, stdout=log, stderr=subprocess.STDOUT)
        self.started.append(process)
        return process

    def log(self, name: str) -> Path:
        """Where a process writes."""
        return self.directory / f"{name}.log"

    def stop(self) -> None:
        """SIGTERM to all, then SIGKILL to those that don't go."""
        for process in self.started:
            process.terminate()
        for process in self.started:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_http(url: str, process: subprocess.Popen[bytes], good: Any = lambda body: True, seconds: float = 60) -> None:
    """Wait until a URL of a process answers as it should."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with code {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if good(answer.read()):
                    return
        except (OSError, urllib.error.URLError):
            pass  # not up yet
        time.sleep(0.1)
    raise TimeoutError(f"{url} didn't get ready in {seconds:g} s")


def rss_mb(pid: int, key: str = "VmRSS") -> float:
    """Resident set of a process in MB."""
    for text in Path(f"/proc/{pid}/status").read_text().splitlines():
        if text.startswith(f"{key}:"):
            return round(int(text.split()[1]) * 1024 / 1e6, 1)
    return float("nan")


def peak_rss_mb(pid: int) -> float:
    """Largest resident set of a process so far, in MB."""
    return rss_mb(pid, "VmHWM")
