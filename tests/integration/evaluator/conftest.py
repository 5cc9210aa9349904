"""The evaluator as deployed: ``serve`` and ``work`` in their own environment, a real gateway and an echo replica behind it, on
real Valkey and SeaweedFS, over gRPC."""

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from google.protobuf.json_format import ParseDict
from martlet.common.v1 import job_pb2
from martlet.evaluator.v1 import evaluation_job_pb2, evaluation_service_pb2, evaluation_service_pb2_grpc
from martlet_core.api_keys import ApiKeyStore
from martlet_core.local_servers import free_port
from martlet_core.rpc.client import call_metadata
from martlet_core.service_tokens import make_service_token
from martlet_core.settings import CoreSettings
from martlet_core.stores import Stores, open_stores
from martlet_core.testing.servers import start_valkey

ROOT = Path(__file__).parents[3]
DEADLINE_SECONDS = 120.0
TENANT = "acme"
TOKEN = "internal-token"
BASE = "echo-base"


class Evaluator:
    """An evaluator and its client.

    Attributes:
        stores: the deployment's.
        worker: the first worker process.
    """

    def __init__(self, tmp_path: Path, s3_settings: dict[str, str]) -> None:
        self._tmp_path = tmp_path
        self._valkey = start_valkey(tmp_path / "valkey")
        s3 = {**s3_settings, "s3_bucket": f"evaluator-{secrets.token_hex(4)}"}
        self._http_port, self._gateway_port = free_port(), free_port()
        self._environ = {
            **os.environ,
            **{f"MARTLET_{name.upper()}": value for name, value in s3.items()},
            "MARTLET_REDIS_URL": self._valkey.url,
            "MARTLET_INTERNAL_TOKEN": TOKEN,
            "MARTLET_CACHE_DIR": str(tmp_path / "cache"),
            "MARTLET_WORK_DIR": str(tmp_path / "work"),
            "MARTLET_MODELS_DIR": str(tmp_path / "models"),
            "MARTLET_LEASE_SECONDS": "4",
            "MARTLET_RECONCILE_SECONDS": "1",
            "MARTLET_CHECKPOINT_SECONDS": "0.3",
            "MARTLET_GATEWAY_URL": f"http://127.0.0.1:{self._http_port}/v1",
            "OMP_NUM_THREADS": "1",
        }
        self._environ.pop("PYTHONDONTWRITEBYTECODE", None)
        self.address = f"127.0.0.1:{free_port()}"
        self.stores: Stores = open_stores(
            CoreSettings(redis_url=self._valkey.url, cache_dir=tmp_path / "test-cache", **s3)  # type: ignore[arg-type]
        )
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start_gateway()
        self._start("evaluator", "serve", {"MARTLET_GRPC_ADDRESS": self.address})
        self.worker = self.start_worker()
        self._channel = grpc.insecure_channel(self.address)
        grpc.channel_ready_future(self._channel).result(60)
        self.stub = evaluation_service_pb2_grpc.EvaluationServiceStub(self._channel)
        self.wait_until(self._base_answers, "the replica")

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Another worker process."""
        return self._start("evaluator", "work", {})

    def call(self, method: Callable[..., Any], request: Any, *, tenant: str = TENANT) -> Any:
        """A unary call on behalf of a tenant."""
        return method(request, timeout=60, metadata=call_metadata(tenant=tenant, internal_token=TOKEN))

    def upload(self, rows: Sequence[Any], *, tenant: str = TENANT) -> str:
        """A data set of one file; returns its resource name."""
        directory = self._tmp_path / f"upload-{secrets.token_hex(4)}"
        directory.mkdir()
        (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"artifacts/{self.stores.artifacts.put_directory(directory, kind='dataset', tenant=tenant).id}"

    def create(self, spec: dict[str, Any], *, tenant: str = TENANT, **fields: Any) -> Any:
        """Create an evaluation."""
        job = ParseDict({"display_name": "words", "spec": spec}, evaluation_job_pb2.EvaluationJob())
        request = evaluation_service_pb2.CreateEvaluationJobRequest(evaluation_job=job, **fields)
        return self.call(self.stub.CreateEvaluationJob, request, tenant=tenant)

    def get(self, name: str) -> Any:
        """The evaluation as it is now."""
        return self.call(self.stub.GetEvaluationJob, evaluation_service_pb2.GetEvaluationJobRequest(name=name))

    def step(self, name: str) -> int:
        """Answers so far of a job that mustn't have ended."""
        job = self.get(name)
        if job.HasField("end_time"):
            pytest.fail(f"{name} has ended: {job.error}\n{self.logs()}")
        return job.progress.step

    def cancel(self, name: str) -> Any:
        """Ask it to stop."""
        return self.call(self.stub.CancelEvaluationJob, evaluation_service_pb2.CancelEvaluationJobRequest(name=name))

    def openai(self) -> openai.OpenAI:
        """The stock client with a key of the tenant's."""
        secret, _ = ApiKeyStore(self.stores.objects).create(TENANT)
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self._http_port}/v1", api_key=secret, max_retries=0)

    def watch(self, name: str) -> list[job_pb2.JobEvent]:
        """All events to the end."""
        request = evaluation_service_pb2.WatchEvaluationJobRequest(name=name)
        metadata = call_metadata(tenant=TENANT, internal_token=TOKEN)
        return list(self.stub.WatchEvaluationJob(request, timeout=DEADLINE_SECONDS, metadata=metadata))

    def asked(self) -> int:
        """Chats that the gateway has answered."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        pattern = r'^martlet_gateway_requests_total\{method="POST",route="/v1/chat/completions",status="200"\} (\S+)$'
        return sum(int(float(value)) for value in re.findall(pattern, text, re.MULTILINE))

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Poll a condition to a deadline."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            ended = [process.args for process in self._processes if process.poll() not in (None, -signal.SIGKILL)]
            if time.monotonic() > deadline or ended:
                pytest.fail(f"waited in vain for {what}\n{self.logs()}")
            time.sleep(0.05)

    def download(self, artifact: str) -> Path:
        """An artifact's files."""
        directory = self._tmp_path / f"download-{secrets.token_hex(4)}"
        self.stores.artifacts.download(artifact.removeprefix("artifacts/"), directory)
        return directory

    def children(self, worker: subprocess.Popen[bytes]) -> list[int]:
        """Process ids of a worker's jobs."""
        pids: set[int] = set()
        for tasks in Path(f"/proc/{worker.pid}/task").glob("*/children"):
            with suppress(OSError):
                pids |= {int(pid) for pid in tasks.read_text().split()}
        return sorted(pids)

    def logs(self) -> str:
        """What the processes wrote last."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self._tmp_path.glob("*.log"))

    def close(self) -> None:
        """Stop everything."""
        self._channel.close()
        for process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._valkey.kill()

    def _start_gateway(self) -> None:
        """The gateway, and a replica whose answers are the question's words, at 40 a second."""
        gateway_address = f"127.0.0.1:{self._gateway_port}"
        self._start(
            "gateway",
            "serve",
            {
                "MARTLET_GRPC_ADDRESS": gateway_address,
                "MARTLET_HTTP_PORT": str(self._http_port),
                "MARTLET_TRAINER_ADDRESS": "127.0.0.1:1",
                "MARTLET_EVALUATOR_ADDRESS": self.address,
                "MARTLET_UPLOAD_DIR": str(self._tmp_path / "uploads"),
            },
        )
        model = self._tmp_path / "echo-model"
        model.mkdir()
        (model / "config.json").write_text('{"model_type": "echo"}')
        self._start(
            "inference",
            "serve",
            {
                "MARTLET_GRPC_ADDRESS": f"127.0.0.1:{free_port()}",
                "MARTLET_GATEWAY_ADDRESS": gateway_address,
                "MARTLET_ENGINE": "echo",
                "MARTLET_MODEL": BASE,
                "MARTLET_MODEL_DIR": str(model),
                "MARTLET_ECHO_TOKENS_PER_SECOND": "40",
            },
        )

    def _base_answers(self) -> bool:
        headers = {"authorization": f"Bearer {make_service_token(TOKEN, TENANT)}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self._http_port}/v1/models/{BASE}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(json.loads(answer.read())["martlet"]["answers_now"])
        except OSError:
            return False

    def _start(self, service: str, command: str, environ: dict[str, str]) -> subprocess.Popen[bytes]:
        python = str(ROOT / ".martlet/envs/evaluator/bin/python") if service == "evaluator" else sys.executable
        log = self._tmp_path / f"{service}-{command}-{len(self._processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [python, "-m", f"martlet_{service}", command],
                env={**self._environ, **environ},
                stdout=output,
                stderr=output,
            )
        self._processes.append(process)
        return process


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory, s3_settings: dict[str, str]) -> Iterator[Evaluator]:
    """An evaluator shared by a module's tests."""
    tmp_path = tmp_path_factory.mktemp("evaluator")
    (tmp_path / "valkey").mkdir()
    evaluator = Evaluator(tmp_path, s3_settings)
    yield evaluator
    evaluator.close()
