"""One replica with a real vLLM on the CPU, serving SmolLM2 from a real object store, for all tests of this folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import httpx
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from martlet.inference.v1 import inference_pb2 as pb
from martlet.inference.v1 import inference_service_pb2 as service_pb
from martlet.inference.v1 import inference_service_pb2_grpc as service_grpc
from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.local_servers import free_port
from martlet_core.models import ObjectModelRegistry
from martlet_core.settings import CoreSettings
from martlet_inference.testing import write_adapter

ROOT = Path(__file__).parents[3]
BASE = "smollm2-135m-instruct"
#: Tasks of the models of pooling_models.py.
POOLING_TASKS = {
    "embedding": "embedding",
    "classes": "sequence_classification",
    "reranker": "reranker",
    "reward": "reward",
    "tokens": "token_classification",
}
#: A start imports torch and vLLM twice, one after the other; 25 s on an idle 2-core machine.
START_SECONDS = 240.0


def environment_python(service: str) -> str:
    """Interpreter of a service's environment."""
    named = os.environ.get(f"MARTLET_{service.upper().replace('-', '_')}_PYTHON")
    return named or str(ROOT / ".martlet" / "envs" / service / "bin" / "python")


@pytest.fixture(scope="session")
def inference_python() -> str:
    """Interpreter that vLLM is installed for."""
    return environment_python("inference")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as an ordinary model directory; prepared once, then kept."""
    if named := os.environ.get("MARTLET_TEST_MODEL_DIR"):
        return Path(named)
    directory = Path(os.environ.get("MARTLET_MODELS_DIR") or ROOT / ".martlet" / "models") / BASE
    if not (directory / "config.json").is_file():
        command = [
            environment_python("trainer"),
            "-m",
            "martlet_inputs.base_models",
            "prepare",
            BASE,
            "--out",
            str(directory),
        ]
        subprocess.run(command, check=True, timeout=280)
    return directory


@dataclass
class Platform:
    """The stores that a replica resolves names in."""

    settings: CoreSettings
    artifacts: ContentAddressedStore
    models: ObjectModelRegistry

    def publish(self, name: str, kind: str, directory: Path, **fields: Any) -> PublishedModel:
        """Store a directory and make it known under a name."""
        artifact_kind = "adapter" if kind == "adapter" else "model"
        return self.models.publish(
            PublishedModel(name, kind, artifact_id=self.store(artifact_kind, directory), **fields)
        )

    def store(self, kind: str, directory: Path) -> str:
        """Store a directory; the artifact's id."""
        return self.artifacts.put_directory(directory, kind=kind, tenant="default").id


@pytest.fixture(scope="session")
def platform(s3_settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    settings = CoreSettings(**(s3_settings | {"s3_bucket": "inference-tests"}))  # pyright: ignore[reportArgumentType]
    objects = S3ObjectStore.from_settings(settings)
    objects.prepare()
    artifacts = ContentAddressedStore(objects, tmp_path_factory.mktemp("blobs"))
    yield Platform(settings, artifacts, ObjectModelRegistry(objects))
    artifacts.close()


def wait_for(condition: Callable[[], Any], timeout_seconds: float, what: str) -> Any:
    """Poll until a condition is true and return its value."""
    deadline = time.monotonic() + timeout_seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)
    return value


class ReplicaProcess:
    """``python -m martlet_inference serve`` in the engine's environment, with a model directory of its own."""

    def __init__(
        self,
        platform: Platform,
        model: Path,
        directory: Path,
        engine: str = "vllm",
        further: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.engine = engine
        self.log_path = directory / "replica.log"
        settings = platform.settings
        env = {key: value for key, value in os.environ.items() if not key.startswith("MARTLET_")}
        env |= {
            "MARTLET_ENGINE": engine,
            "MARTLET_MODEL": BASE,
            "MARTLET_MODEL_DIR": str(model),
            "MARTLET_GRPC_ADDRESS": "127.0.0.1:0",
            "MARTLET_S3_ENDPOINT": settings.s3_endpoint,
            "MARTLET_S3_ACCESS_KEY": settings.s3_access_key,
            "MARTLET_S3_SECRET_KEY": settings.s3_secret_key,
            "MARTLET_S3_BUCKET": settings.s3_bucket,
            "MARTLET_CACHE_DIR": str(directory / "cache"),
            "MARTLET_MAX_LORA_RANK": "16",
            "MARTLET_MAX_ADAPTERS": "2",
            **further,
        }
        with self.log_path.open("wb") as log:
            python = environment_python("inference" if engine == "vllm" else f"inference-{engine}")
            command = [python, "-m", "martlet_inference", "serve"]
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        port = wait_for(lambda: re.search(r"serving gRPC on port (\d+)", self.log()), 60, "the replica's port")[1]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.stub = service_grpc.InferenceServiceStub(self.channel)
        self._health = health_pb2_grpc.HealthStub(self.channel)

    def log(self) -> str:
        """All it wrote; a dead replica is an error."""
        text = self.log_path.read_text()
        if self.process.poll() is not None:
            raise RuntimeError(f"the replica ended with code {self.process.returncode}:\n{text[-4000:]}")
        return text

    def serving(self) -> bool:
        """What its health service says."""
        answer = self._health.Check(health_pb2.HealthCheckRequest())
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def wait_serving(self, serving: bool = True) -> None:
        """Wait until the health service says so."""
        wait_for(lambda: self.log() and self.serving() is serving, START_SECONDS, f"serving={serving}")

    def info(self) -> service_pb.ReplicaInfo:
        return self.stub.GetReplicaInfo(service_pb.GetReplicaInfoRequest())

    def models(self) -> dict[str, pb.ServedModel]:
        """Models on it by name."""
        listed = self.stub.ListServedModels(service_pb.ListServedModelsRequest())
        return {model.name: model for model in listed.models}

    def engine_pid(self) -> int:
        """Process id of its engine's server."""
        return int(re.findall(rf'"message": "{self.engine} started".*?"pid": (\d+)', self.log())[-1])

    def engine_metric(self, name: str) -> float:
        """A figure from the engine itself."""
        socket = re.findall(r"--uds (\S+)", self.log())[-1]
        with httpx.Client(transport=httpx.HTTPTransport(uds=socket)) as client:
            page = client.get("http://engine/metrics").text
        found = re.search(rf"^{re.escape(name)}(?:\{{.*\}})? ([0-9.e+-]+)$", page, re.MULTILINE)
        assert found, f"no {name} in the engine's metrics"
        return float(found[1])

    def stream(self, **body: Any) -> Any:
        """A call with a body of /v1/chat/completions; ``model`` is the base unless given."""
        body = {"model": BASE, "stream": False} | body
        request = pb.CallOpenAIRequest(
            route=pb.OPEN_AI_ROUTE_CHAT_COMPLETIONS,
            model=body["model"],
            stream=body["stream"],
            body=json.dumps(body).encode(),
        )
        return self.stub.CallOpenAI(request, timeout=120)

    def chat(self, text: str = "What is the capital of France?", **body: Any) -> dict[str, Any]:
        """The answer to a question, not streamed."""
        [message] = list(self.stream(**({"messages": [{"role": "user", "content": text}]} | body)))
        return json.loads(message.data) | {"http_status": message.http_status}

    def stop(self) -> None:
        """Ask it to end; everything it started must end too."""
        self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            self.process.kill()


@dataclass(frozen=True)
class Talking:
    """A tiny model that talks until it is stopped, an adapter on it, and what plain transformers says with both.

    Attributes:
        said: ``base`` and ``adapter`` -> the answer to each of ``prompts``, of 24 tokens.
    """

    directory: Path
    prompts: list[str]
    said: dict[str, list[str]]


@pytest.fixture(scope="session")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Talking:
    """See ``Talking``."""
    directory = tmp_path_factory.mktemp("talking")
    prompts = ["Once upon a time", "hello", "Name three birds that fly fast, and say why they do."]
    script = Path(__file__).with_name("talking_llama.py")
    command = [environment_python("inference-transformers"), script, directory, *prompts]
    done = subprocess.run(command, check=True, timeout=280, stdout=subprocess.PIPE)
    return Talking(directory, prompts, json.loads(done.stdout))


@pytest.fixture(scope="session")
def talker(platform: Platform, talking: Talking, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaProcess]:
    """A replica on transformers that serves the tiny model, and knows its adapter."""
    name = f"ft:{BASE}:default::7a1c0000"
    platform.publish(name, "adapter", talking.directory / "adapter", base_model=BASE, lora_rank=8)
    directory = tmp_path_factory.mktemp("talker")
    started = ReplicaProcess(platform, talking.directory / "model", directory, engine="transformers")
    try:
        started.wait_serving()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def replica(platform: Platform, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaProcess]:
    """A replica as the launcher starts it: nobody publishes its base model."""
    started = ReplicaProcess(platform, smollm2, tmp_path_factory.mktemp("replica"))
    try:
        assert not started.serving()
        started.wait_serving()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def adapters(platform: Platform, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three published adapters on SmolLM2: one more than the replica holds at a time."""
    names = []
    for seed in range(3):
        directory = write_adapter(tmp_path_factory.mktemp("adapters") / "files", smollm2, seed=seed)
        names.append(f"ft:{BASE}:default::{seed:08d}")
        platform.publish(names[-1], "adapter", directory, base_model=BASE, lora_rank=8)
    return names


@dataclass
class Served:
    """A gateway with one replica, tiny models published under their names, and what plain transformers makes of texts with them."""

    client: openai.OpenAI
    grpc_address: str
    key: str
    said: dict[str, dict[str, Any]]

    def post(self, path: str, **body: Any) -> Any:
        """The answer of a route that the stock client has no method for."""
        return self.client.post(path, body=body, cast_to=httpx.Response).json()


@contextmanager
def gateway_process(platform: Platform, valkey_url: str, ports: dict[str, int], directory: Path) -> Iterator[str]:
    """A gateway on the platform's stores; gives the key that its first start made."""
    settings = platform.settings
    environment = {
        **os.environ,
        "MARTLET_S3_ENDPOINT": settings.s3_endpoint,
        "MARTLET_S3_ACCESS_KEY": settings.s3_access_key,
        "MARTLET_S3_SECRET_KEY": settings.s3_secret_key,
        "MARTLET_S3_BUCKET": settings.s3_bucket,
        "MARTLET_REDIS_URL": valkey_url,
        "MARTLET_HTTP_PORT": str(ports["http"]),
        "MARTLET_GRPC_ADDRESS": f"127.0.0.1:{ports['grpc']}",
        "MARTLET_UPLOAD_DIR": str(directory / "uploads"),
        "MARTLET_CACHE_DIR": str(directory / "cache"),
    }
    log = directory / "gateway.log"
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "martlet_gateway", "serve"]
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        yield wait_for(lambda: re.search(r"mk-[A-Za-z0-9_-]{43}", log.read_text()), 60, "the gateway's key")[0]
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def served(platform: Platform, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("pooling")
    script = Path(__file__).with_name("pooling_models.py")
    command = [environment_python("inference-transformers"), script, directory]
    done = subprocess.run(command, check=True, timeout=280, stdout=subprocess.PIPE)
    for name, task in POOLING_TASKS.items():
        artifact = platform.artifacts.put_directory(
            directory / name, kind="model", tenant="default", metadata={"task": task}
        )
        if name != "embedding":  # the replica's own: its files alone say what it is for
            model = PublishedModel(name, "whole", "default", artifact.id, metadata={"task": task})
            platform.models.publish(model)
    ports = {"http": free_port(), "grpc": free_port()}
    address = f"127.0.0.1:{ports['grpc']}"
    with gateway_process(platform, valkey_url, ports, tmp_path_factory.mktemp("gateway")) as key:
        replica = ReplicaProcess(
            platform,
            directory / "embedding",
            tmp_path_factory.mktemp("pooler"),
            engine=os.environ.get("MARTLET_TEST_POOLING_ENGINE", "transformers"),
            further={
                "MARTLET_MODEL": "embedding",
                "MARTLET_GATEWAY_ADDRESS": address,
                "MARTLET_ACCEPTS_PLACEMENT": "true",
            },
        )
        try:
            replica.wait_serving()
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{ports['http']}/v1", api_key=key, max_retries=0)
            wait_for(lambda: client.models.retrieve("embedding").martlet["loaded"], 30, "the replica's registration")
            yield Served(client, address, key, json.loads(done.stdout))
        finally:
            replica.stop()
