"""A run on the real thing: gateway ``serve`` and ``work``, trainer ``serve`` and ``work``, Valkey, SeaweedFS, a tiny model."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import redis
from martlet_core.local_servers import free_port
from martlet_core.testing.servers import start_valkey

ROOT = Path(__file__).parents[3]
TINY = ROOT / "tests/integration/trainer/tiny_llama.py"
TRAINER = os.environ.get("MARTLET_TRAINER_PYTHON") or str(ROOT / ".martlet/envs/trainer/bin/python")
DEADLINE_SECONDS = 200.0
RUN = """\
name: tiny
inputs:
  base:
  data:
steps:
  train:
    kind: train
    with:
      base_model: ${inputs.base}
      training_dataset: ${inputs.data}
      tuner: {lora_rank: 4}
      hyperparameters: {max_steps: 30, per_device_batch_size: 4}
      checkpoints: {interval_steps: 5}
  merge:
    kind: merge
    with: {adapter: "${train.adapter}"}
  gate:
    kind: gate
    with: {require: [merge.top1_agreement >= 0.5]}
  deploy:
    kind: deploy
    needs: [gate]
    with: {alias: tiny, model: "${merge.model}"}
"""


class Platform:
    """The processes, and the gateway's REST."""

    def __init__(self, home: Path, s3_settings: dict[str, str]) -> None:
        self._home = home
        self._processes: list[subprocess.Popen[bytes]] = []
        (home / "valkey").mkdir()
        self.valkey = start_valkey(home / "valkey")
        self.model = home / "models" / "tiny-llama"
        subprocess.run([TRAINER, str(TINY), str(self.model)], check=True, timeout=120)
        trainer, http = free_port(), free_port()
        s3 = {**s3_settings, "s3_bucket": f"runs-{secrets.token_hex(4)}"}
        self._environ = {
            **os.environ,
            **{f"MARTLET_{name.upper()}": value for name, value in s3.items()},
            "MARTLET_REDIS_URL": self.valkey.url,
            "MARTLET_TRAINER_ADDRESS": f"127.0.0.1:{trainer}",
            "MARTLET_HTTP_PORT": str(http),
            "MARTLET_CACHE_DIR": str(home / "cache"),
            "MARTLET_WORK_DIR": str(home / "work"),
            "MARTLET_UPLOAD_DIR": str(home / "uploads"),
            "MARTLET_MODELS_DIR": str(home / "prepared"),
            "MARTLET_MODEL_ROOTS": str(self.model.parent),
            "MARTLET_LEASE_SECONDS": "4",
            "MARTLET_RECONCILE_SECONDS": "1",
            "MARTLET_GRPC_ADDRESS": "127.0.0.1:0",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self._url = f"http://127.0.0.1:{http}/v1"
        self.start(TRAINER, "martlet_trainer", "serve", MARTLET_GRPC_ADDRESS=f"127.0.0.1:{trainer}")
        self.start(TRAINER, "martlet_trainer", "work")
        self.gateway = self.start(sys.executable, "martlet_gateway", "serve")
        self.work = self.start_work()
        self.wait(lambda: re.search(r"mk-[A-Za-z0-9_-]{43}", self.logs()), "the first key")
        found = re.search(r"mk-[A-Za-z0-9_-]{43}", self.logs())
        assert found
        self._key = found[0]
        self.wait(lambda: self.answers("/models"), "the gateway")
        self.wait(lambda: self.answers("/martlet/merge/jobs"), "the trainer behind it")

    def start_work(self) -> subprocess.Popen[bytes]:
        """The runs' worker."""
        return self.start(sys.executable, "martlet_gateway", "work")

    def start(self, python: str, module: str, command: str, **environ: str) -> subprocess.Popen[bytes]:
        """A process, with a log of its own."""
        with (self._home / f"{module}-{command}-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [python, "-m", module, command], env=self._environ | environ, stdout=log, stderr=log
            )
        self._processes.append(process)
        return process

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """A request with the key; its JSON."""
        request = urllib.request.Request(
            self._url + path, method=method, headers={"authorization": f"Bearer {self._key}"}
        )
        if body is not None:
            request.add_header("content-type", "application/json")
            request.data = json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from error

    def answers(self, path: str) -> bool:
        """Whether a route answers."""
        try:
            self.call("GET", path)
        except (URLError, AssertionError, ConnectionError):
            return False
        return True

    def upload(self, rows: str) -> str:
        """A data set; its artifact."""
        mark = secrets.token_hex(8)
        parts = (
            f'--{mark}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
            f'--{mark}\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{rows}\r\n--{mark}--\r\n'
        )
        headers = {"authorization": f"Bearer {self._key}", "content-type": f"multipart/form-data; boundary={mark}"}
        request = urllib.request.Request(self._url + "/files", parts.encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return "artifacts/" + json.load(answer)["id"].removeprefix("file-")

    def step(self, run: str, step: str) -> dict[str, Any]:
        """A step of a run as it is now; empty while the run isn't there."""
        try:
            shown = self.call("GET", f"/martlet/runs/{run}")
        except AssertionError:
            return {}
        return next(s for s in shown["steps"] if s["id"] == step)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Poll a condition to a deadline."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            if time.monotonic() > deadline or self.gateway_died():
                pytest.fail(f"waited in vain for {what}\n{self.logs()}")
            time.sleep(0.1)

    def gateway_died(self) -> bool:
        """Whether the gateway ended by itself."""
        return self.gateway.poll() is not None

    def logs(self) -> str:
        """What the processes wrote last."""
        return "\n".join(f"--- {p.name}\n{p.read_text()[-4000:]}" for p in sorted(self._home.glob("*.log")))

    def close(self) -> None:
        """Stop everything."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.valkey.kill()


@pytest.fixture
def platform(tmp_path: Path, s3_settings: dict[str, str]) -> Iterator[Platform]:
    platform = Platform(tmp_path, s3_settings)
    yield platform
    platform.close()


@pytest.mark.slow
def test_a_run_survives_its_killed_worker_and_a_wiped_valkey(platform: Platform) -> None:
    """Trains and merges a real (tiny) model: a minute. Nothing else shows that ``work`` as a process, both reconcilers and
    the trainer's own recovery fit together."""
    turn = {"messages": [{"role": "user", "content": "say oak"}, {"role": "assistant", "content": "oak"}]}
    data = platform.upload((json.dumps(turn) + "\n") * 40)
    body = {"source": RUN, "inputs": {"base": f"file://{platform.model}", "data": data}}
    run = platform.call("POST", "/martlet/runs", body)["id"]
    platform.wait(lambda: platform.step(run, "train").get("state") == "RUNNING", "the training")
    job = platform.step(run, "train")["job"]

    platform.work.send_signal(signal.SIGKILL)
    platform.work.wait(10)
    client = redis.Redis.from_url(platform.valkey.url)
    client.flushall()
    client.close()
    work = platform.start_work()
    platform.wait(lambda: platform.step(run, "train").get("job") == job, "the run to be back")
    platform.wait(lambda: platform.step(run, "merge").get("state") in ("RUNNING", "QUEUED", "SUCCEEDED"), "the merge")
    platform.wait(lambda: platform.call("GET", f"/martlet/runs/{run}")["state"] in ("SUCCEEDED", "FAILED"), "the end")

    shown = platform.call("GET", f"/martlet/runs/{run}")
    assert shown["state"] == "SUCCEEDED", (shown, platform.logs())
    steps = {step["id"]: step for step in shown["steps"]}
    assert steps["train"]["job"] == job
    assert [j["name"] for j in platform.call("GET", "/martlet/jobs")["data"]] == [job], "one training, made once"
    assert len(platform.call("GET", "/martlet/merge/jobs")["data"]) == 1
    assert steps["deploy"]["outputs"]["model"] == steps["merge"]["outputs"]["model"]
    assert platform.call("GET", "/martlet/aliases/tiny")["model"] == steps["merge"]["outputs"]["model"]
    again = platform.call("POST", "/martlet/runs", {**body, "reuse": True})["id"]
    platform.wait(lambda: platform.call("GET", f"/martlet/runs/{again}")["state"] == "SUCCEEDED", "the run by reuse")
    reused = platform.call("GET", f"/martlet/runs/{again}")["steps"]
    assert [step["id"] for step in reused if step["reused"]] == ["train", "merge"]

    work.send_signal(signal.SIGTERM)
    assert work.wait(30) == 0
