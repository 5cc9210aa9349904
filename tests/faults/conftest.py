"""A small real platform to break: Valkey and SeaweedFS, worker processes of the toy stage, and a wire to cut."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from martlet_core.job_bus import CeleryBell
from martlet_core.job_service import JobService
from martlet_core.jobs import Job, JobState
from martlet_core.settings import CoreSettings
from martlet_core.stores import Stores, open_stores
from martlet_core.testing.servers import RunningServer, start_valkey
from martlet_core.testing.toy_recipe import value_after
from martlet_core.testing.toy_stage import QUEUE, STAGE, toy_job

DEADLINE_SECONDS = 60.0
TENANT = "acme"


class Wire:
    """Forwards TCP connections to a server until it is cut, and again once it is mended."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._cut = False
        self.refused = threading.Event()
        self.url = f"{parts.scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all connections and refuse new ones."""
        self.refused.clear()
        with self._lock:
            self._cut = True
            for connection in self._open:
                _hang_up(connection)
            self._open.clear()

    def mend(self) -> None:
        """Forward again."""
        with self._lock:
            self._cut = False

    def close(self) -> None:
        """Stop for good."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._cut:
                    _hang_up(client)
                    self.refused.set()
                    continue
                server = socket.create_connection(self._upstream)
                self._open |= {client, server}
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        _hang_up(source)
        _hang_up(target)
        with self._lock:
            self._open -= {source, target}


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class WorkerProcess:
    """A worker of the toy stage, with a reconciler beside it."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self._log.read_text()

    def recipes(self) -> list[int]:
        """Process ids of its recipes that live."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids: set[int] = set()
        for tasks in children.parent.parent.glob("*/children"):
            with suppress(OSError):
                pids |= {int(pid) for pid in tasks.read_text().split()}
        return [pid for pid in pids if is_alive(pid)]

    def signal(self, number: int) -> None:
        """Send a signal to the worker alone."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)


class Drill:
    """The platform, what a user does with it, and what must hold afterwards."""

    def __init__(self, tmp_path: Path, s3_settings: dict[str, str]) -> None:
        self._tmp_path = tmp_path
        self.valkey = self._start_valkey()
        self.s3_wire = Wire(s3_settings["s3_endpoint"])
        self._s3_settings = {**s3_settings, "s3_bucket": f"drill-{secrets.token_hex(4)}"}
        self.stores: Stores = open_stores(self.settings(s3_endpoint=s3_settings["s3_endpoint"]))
        self._bell = CeleryBell(self.valkey.url)
        self.service = JobService(STAGE, self.stores, self._bell)
        self.workers: list[WorkerProcess] = []
        self.trace = tmp_path / "trace"

    def settings(self, **overrides: str) -> CoreSettings:
        values = {**self._s3_settings, "s3_endpoint": self.s3_wire.url, **overrides}
        return CoreSettings(redis_url=self.valkey.url, cache_dir=self._tmp_path / "cache", **values)  # type: ignore[arg-type]

    def start_worker(self, *, lease_seconds: float = 3.0, stop_grace_seconds: float = 10.0) -> WorkerProcess:
        number = len(self.workers)
        log = self._tmp_path / f"worker{number}.log"
        settings = self.settings()
        env = {
            **os.environ,
            "MARTLET_REDIS_URL": settings.redis_url,
            "MARTLET_S3_ENDPOINT": settings.s3_endpoint,
            "MARTLET_S3_ACCESS_KEY": settings.s3_access_key,
            "MARTLET_S3_SECRET_KEY": settings.s3_secret_key,
            "MARTLET_S3_BUCKET": settings.s3_bucket,
            "MARTLET_CACHE_DIR": str(self._tmp_path / f"cache{number}"),
            "MARTLET_WORK_DIR": str(self._tmp_path / f"work{number}"),
            "MARTLET_LEASE_SECONDS": str(lease_seconds),
            "MARTLET_STOP_GRACE_SECONDS": str(stop_grace_seconds),
        }
        with log.open("wb") as output:
            command = [sys.executable, "-m", "martlet_core.testing.toy_stage", "--reconcile"]
            process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
        worker = WorkerProcess(process, log)
        self.workers.append(worker)
        return worker

    def submit(self, **spec: object) -> str:
        new = toy_job(trace=str(self.trace), **{"steps": 300, "step_seconds": 0.01, "checkpoint_every": 20, **spec})
        return asyncio.run(self.service.create(TENANT, new)).id

    def job(self, job_id: str) -> Job:
        return self.stores.jobs.get(job_id)

    def ring(self, job_id: str) -> None:
        self._bell.ring(QUEUE, job_id)

    def restart_valkey(self) -> None:
        """SIGKILL, then a new server on the same port and append-only file."""
        port = self.valkey.port
        self.valkey.kill()
        self.valkey = self._start_valkey(port)

    def flush_valkey(self) -> None:
        redis.Redis.from_url(self.valkey.url).flushall()

    def await_step(self, job_id: str, step: int) -> None:
        self.wait_until(lambda: self.job(job_id).progress.get("step", 0) >= step, f"step {step}")

    def await_checkpoint(self, job_id: str) -> None:
        self.wait_until(lambda: self.job(job_id).checkpoints, "a checkpoint")

    def await_state(self, job_id: str, *states: JobState) -> Job:
        self.wait_until(lambda: self.job(job_id).state in states, f"state {[state.value for state in states]}")
        return self.job(job_id)

    def await_end(self, job_id: str) -> Job:
        self.wait_until(lambda: self.job(job_id).state.is_final, "a final state")
        return self.job(job_id)

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- worker {n}\n{worker.log[-3000:]}" for n, worker in enumerate(self.workers))
                pytest.fail(f"waited in vain for: {what}\n{logs}")
            time.sleep(0.02)

    def steps_by_attempt(self) -> dict[int, list[int]]:
        """Which steps each attempt really made."""
        made: dict[int, list[int]] = {}
        for line in self.trace.read_text().splitlines():
            attempt, step = map(int, line.split())
            made.setdefault(attempt, []).append(step)
        return made

    def check_unbroken(self, job_id: str, steps: int = 300) -> Job:
        """The job ended as an unbroken run would have, said so, and left nothing behind but what counts."""
        job = self.job(job_id)
        assert job.state is JobState.SUCCEEDED, job.error
        assert int(job.result["value"]) == value_after(steps)
        model = self.stores.models.get(f"toy:{job_id}", tenant=TENANT)
        assert f"{job_id}a{job.attempt}model" == model.artifact_id
        assert self.stores.artifacts.get(model.artifact_id).source_job == job_id
        losses: dict[int, float] = {}
        for event in self.events(job_id):
            if event.type == "metrics":
                step, loss = event.data["step"], event.data["values"]["loss"]
                assert losses.setdefault(step, loss) == loss, f"step {step} was said to have two losses"
        assert sorted(losses) == list(range(1, steps + 1))
        return job

    def events(self, job_id: str) -> list:
        events, cursor = [], ""
        while page := self.stores.jobs.events(job_id, after=cursor, limit=1000):
            events += page
            cursor = page[-1].cursor
        return events

    def close(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                with suppress(ProcessLookupError):
                    worker.signal(signal.SIGCONT)
                worker.kill()
        self.s3_wire.close()
        self._bell.close()
        self.valkey.kill()

    def _start_valkey(self, port: int = 0) -> RunningServer:
        return start_valkey(self._tmp_path / "valkey", port=port)


def is_alive(pid: int) -> bool:
    """True for a process that exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def drill(tmp_path: Path, s3_settings: dict[str, str]) -> Iterator[Drill]:
    """The platform, with no worker yet."""
    (tmp_path / "valkey").mkdir()
    drill = Drill(tmp_path, s3_settings)
    yield drill
    drill.close()
