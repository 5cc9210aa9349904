"""The doorbell on a real Valkey: Celery as it is configured, and a worker process that listens."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from martlet_core.job_bus import KEY_PREFIX, RING_TASK, CeleryBell, make_celery_app
from martlet_core.testing.servers import RunningServer, start_valkey

DEADLINE_SECONDS = 30.0
QUEUE = "toy"

LISTENER = """
import sys, threading
from martlet_core.job_bus import run_celery_worker

stopping = threading.Event()

def on_ring(job_id):
    print("heard", job_id, flush=True)
    if job_id.startswith("long"):
        stopping.wait(60)
        print("left", job_id, flush=True)

def on_stop():
    print("stopping", flush=True)
    stopping.set()

sys.exit(run_celery_worker(sys.argv[1], "toy", "listener", on_ring=on_ring, on_stop=on_stop))
"""


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.01)


class Listener:
    """A process that hears rings and prints them."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LISTENER, url], stdout=subprocess.PIPE, text=True, env={**os.environ}
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def await_line(self, line: str) -> None:
        wait_until(lambda: line in self.lines, f"{line!r}, got {self.lines}")

    def hears(self, line: str, *, within_seconds: float) -> bool:
        deadline = time.monotonic() + within_seconds
        while line not in self.lines and time.monotonic() < deadline:
            time.sleep(0.01)
        return line in self.lines

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[RunningServer]:
    server = start_valkey(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def listener(valkey: RunningServer) -> Iterator[Listener]:
    listener = Listener(valkey.url)
    yield listener
    listener.process.kill()
    listener.process.wait()


@pytest.fixture
def bell(valkey: RunningServer) -> Iterator[CeleryBell]:
    bell = CeleryBell(valkey.url)
    yield bell
    bell.close()


def test_message_is_the_id_in_json_and_nothing_else(valkey: RunningServer, bell: CeleryBell) -> None:
    bell.ring(QUEUE, "job1")
    client = redis.Redis.from_url(valkey.url)
    (raw,) = client.lrange(f"{KEY_PREFIX}{QUEUE}", 0, -1)  # type: ignore[misc]
    message = json.loads(raw)
    assert message["content-type"] == "application/json"
    assert message["headers"]["task"] == RING_TASK
    body = json.loads(base64.b64decode(message["body"]))
    assert body[0] == ["job1"]
    assert body[1] == {}


def test_pickle_is_not_accepted(valkey: RunningServer) -> None:
    app = make_celery_app(valkey.url, on_ring=lambda _: None, queue=QUEUE)
    assert app.conf.accept_content == ["json"]
    assert app.conf.result_backend is None


def test_ring_is_heard(listener: Listener, bell: CeleryBell) -> None:
    for number in range(3):
        bell.ring(QUEUE, f"job{number}")
    for number in range(3):
        listener.await_line(f"heard job{number}")


def test_ring_before_anyone_listens_is_heard_later(valkey: RunningServer, bell: CeleryBell) -> None:
    bell.ring(QUEUE, "early")
    listener = Listener(valkey.url)
    try:
        listener.await_line("heard early")
    finally:
        listener.process.kill()
        listener.process.wait()


def test_other_queues_are_not_heard(listener: Listener, bell: CeleryBell) -> None:
    bell.ring("elsewhere", "job1")
    bell.ring(QUEUE, "job2")
    listener.await_line("heard job2")
    assert "heard job1" not in listener.lines


def test_message_is_acknowledged_while_its_job_runs(
    valkey: RunningServer, listener: Listener, bell: CeleryBell
) -> None:
    bell.ring(QUEUE, "long")
    listener.await_line("heard long")
    client = redis.Redis.from_url(valkey.url)
    wait_until(lambda: client.hlen(f"{KEY_PREFIX}unacked") == 0, "the acknowledgement")


def test_sigterm_stops_the_job_and_ends_with_zero(listener: Listener, bell: CeleryBell) -> None:
    bell.ring(QUEUE, "long")
    listener.await_line("heard long")
    listener.process.send_signal(signal.SIGTERM)
    assert listener.process.wait(DEADLINE_SECONDS) == 0
    assert listener.lines[-2:] == ["stopping", "left long"]


def test_sigterm_while_the_broker_is_down(valkey: RunningServer, listener: Listener, bell: CeleryBell) -> None:
    bell.ring(QUEUE, "long")
    listener.await_line("heard long")
    valkey.kill()
    listener.process.send_signal(signal.SIGTERM)
    assert listener.process.wait(DEADLINE_SECONDS) == 0


def test_rings_are_heard_again_after_a_restart_of_the_broker(tmp_path: Path) -> None:
    """Celery's consumer goes deaf at a restart now and then (2 of 50 times here), which is why idle workers look for jobs
    by themselves (``test_drills``). Deaf three times in a row would be a fault of our settings.
    """
    assert any(heard_after_a_restart(tmp_path / str(number)) for number in range(3))


def heard_after_a_restart(directory: Path) -> bool:
    """Whether a listener hears a ring within ten seconds of its broker's restart."""
    before = start_valkey(directory)
    listener, bell = Listener(before.url), CeleryBell(before.url)
    try:
        bell.ring(QUEUE, "before")
        listener.await_line("heard before")
        before.kill()
        after = start_valkey(directory, port=before.port)
        try:
            bell.ring(QUEUE, "after")
            return listener.hears("heard after", within_seconds=10.0)
        finally:
            after.kill()
    finally:
        bell.close()
        listener.process.kill()
        listener.process.wait()


def test_ring_without_a_broker_returns_soon_and_raises_nothing(valkey: RunningServer, bell: CeleryBell) -> None:
    valkey.kill()
    started = time.monotonic()
    bell.ring(QUEUE, "job1")
    assert time.monotonic() - started < 5
