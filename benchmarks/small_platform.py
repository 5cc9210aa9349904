"""Stores, a gateway and replicas as processes of a benchmark: what is between a client and an engine, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from environment import ROOT
from martlet_core.local_servers import free_port
from martlet_core.testing.servers import start_seaweedfs, start_valkey
from processes import Processes, wait_http

INTERNAL_TOKEN = "bench"


@dataclass
class Replica:
    """A running replica: its process and where it listens."""

    process: subprocess.Popen[bytes]
    address: str


@dataclass
class SmallPlatform:
    """A gateway and its replicas; made by ``small_platform``.

    Attributes:
        directory: scratch of the benchmark.
        processes: all that was started.
        shared: variables that every service gets.
        url: of the gateway, without ``/v1``.
        key: an operator's key.
        gateway: its process.
        grpc_address: of the gateway.
    """

    directory: Path
    processes: Processes
    shared: Mapping[str, str]
    url: str = ""
    key: str = ""
    grpc_address: str = ""
    gateway: subprocess.Popen[bytes] | None = None
    replicas: list[Replica] = field(default_factory=list)

    def start_gateway(self, environ: Mapping[str, str] | None = None) -> None:
        """Start the gateway, in its own environment where there is one; again at the same address, so that its replicas come back."""
        python = ROOT / ".martlet/envs/gateway/bin/python"
        if not self.url:
            self.url, self.grpc_address = (f"http://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
        self.gateway = self.processes.start(
            "gateway",
            [str(python) if python.exists() else sys.executable, "-m", "martlet_gateway", "serve"],
            {
                **self.shared,
                "MARTLET_HTTP_PORT": self.url.rpartition(":")[2],
                "MARTLET_GRPC_ADDRESS": self.grpc_address,
                "MARTLET_TRAINER_ADDRESS": "127.0.0.1:1",
                **(environ or {}),
            },
        )
        wait_http(f"{self.url}/healthz", self.gateway)
        words = self.processes.log("gateway").read_text().split()
        self.key = self.key or next(word for word in words if word.startswith("mk-"))

    def stop_gateway(self) -> None:
        """Stop it; its replicas stay, and register with the next one."""
        assert self.gateway is not None
        self.gateway.terminate()
        self.gateway.wait(30)

    def start_replica(
        self, name: str, environ: Mapping[str, str], python: Path | None = None, seconds: float = 60.0
    ) -> Replica:
        """Start a replica and wait until the gateway knows that it is ready.

        Args:
            name: of its log.
            environ: its settings.
            python: of another environment than the benchmark's own.
            seconds: that it may take.
        """
        address = f"127.0.0.1:{free_port()}"
        process = self.processes.start(
            name,
            [str(python or sys.executable), "-m", "martlet_inference", "serve"],
            {**self.shared, "MARTLET_GRPC_ADDRESS": address, "MARTLET_GATEWAY_ADDRESS": self.grpc_address, **environ},
        )
        self.replicas.append(Replica(process, address))
        self.wait_replicas(seconds)
        return self.replicas[-1]

    def wait_replicas(self, seconds: float = 60.0) -> None:
        """Wait until those that run are those that the gateway knows to be ready."""
        running = {replica.address for replica in self.replicas if replica.process.poll() is None}
        request = urllib.request.Request(
            f"{self.url}/v1/martlet/replicas", headers={"Authorization": f"Bearer {self.key}"}
        )
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with urllib.request.urlopen(request, timeout=5) as answer:
                listed = json.load(answer)["data"]
            if {replica["address"] for replica in listed if replica.get("ready")} == running:
                return
            time.sleep(0.1)
        raise TimeoutError(f"replicas {sorted(running)} aren't ready after {seconds:g} s")


@contextmanager
def small_platform() -> Iterator[SmallPlatform]:
    """Valkey and SeaweedFS in a scratch directory; start gateway and replicas yourself. All stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="martlet-bench-") as directory, ExitStack() as stack:
        processes = Processes(Path(directory), stack)
        valkey = start_valkey(Path(directory, "valkey"))
        stack.callback(valkey.kill)
        objects = start_seaweedfs(Path(directory, "seaweedfs"), "bench", "bench-secret-key")
        stack.callback(objects.kill)
        stack.callback(processes.stop)
        shared = {
            "MARTLET_REDIS_URL": valkey.url,
            "MARTLET_S3_ENDPOINT": objects.url,
            "MARTLET_S3_ACCESS_KEY": "bench",
            "MARTLET_S3_SECRET_KEY": "bench-secret-key",
            "MARTLET_LOG_LEVEL": "WARNING",
            "MARTLET_INTERNAL_TOKEN": INTERNAL_TOKEN,
            "MARTLET_CACHE_DIR": f"{directory}/cache",
            "MARTLET_UPLOAD_DIR": f"{directory}/uploads",
        }
        yield SmallPlatform(Path(directory), processes, shared)
