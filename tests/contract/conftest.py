"""Our services as processes of their own, and the foreign one, each behind an address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from martlet_core.local_servers import free_port
from martlet_core.settings import CoreSettings
from martlet_core.stores import Stores, open_stores
from martlet_core.testing.conformance import Rule, Skipped, Target, assert_rule

_ROOT = Path(__file__).resolve().parents[2]
_READY_SECONDS = 60.0
_STOP_SECONDS = 20.0


@pytest.fixture(scope="session")
def store_settings(
    redis_server_url: str, s3_settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Settings of the stores that the services and the tests share."""
    cache = tmp_path_factory.mktemp("contract-cache")
    return {"redis_url": redis_server_url, "cache_dir": str(cache), **s3_settings}


@pytest.fixture(scope="session")
def redis_server_url(valkey_url: str) -> str:
    """A database of the session's Valkey that no other test uses."""
    return valkey_url.rsplit("/", 1)[0] + "/9"


@pytest.fixture(scope="session")
def stores(store_settings: dict[str, str]) -> Stores:
    """The stores behind the services."""
    return open_stores(CoreSettings(**store_settings))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def start_service(
    store_settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., str]]:
    """Starts ``python -m martlet_<service> serve`` with settings and returns its address once it is healthy."""
    with _processes() as start:

        def start_service(
            service: str, *, environment_name: str = "", ready_seconds: float = _READY_SECONDS, **settings: object
        ) -> str:
            directory = tmp_path_factory.mktemp(service)
            address = f"127.0.0.1:{free_port()}"
            values = {**store_settings, "grpc_address": address, "work_dir": directory / "work", **settings}
            environment = {f"MARTLET_{name.upper()}": str(value) for name, value in values.items()}
            python, path = _python_of(service, environment_name or service)
            start(
                [python, "-m", f"martlet_{service}", "serve"],
                {**os.environ, **path, **environment},
                directory / "service.log",
                address,
                ready_seconds=ready_seconds,
            )
            return address

        yield start_service


@pytest.fixture(scope="session")
def training_dataset(stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small data set of the tenant ``acme``, as a resource name."""
    directory = tmp_path_factory.mktemp("dataset")
    rows = [
        {"messages": [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": str(n + 1)}]}
        for n in range(20)
    ]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    artifact = stores.artifacts.put_directory(
        directory, kind="dataset", tenant="acme", metadata={"format": "messages", "rows": len(rows)}
    )
    return f"artifacts/{artifact.id}"


@pytest.fixture(scope="session")
def adapter(stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Something of the tenant ``acme`` that can be asked to be merged, as a resource name. It has no weights."""
    directory = tmp_path_factory.mktemp("adapter")
    (directory / "adapter_config.json").write_text("{}")
    artifact = stores.artifacts.put_directory(
        directory, kind="adapter", tenant="acme", metadata={"base_model": "smollm2-135m-instruct", "lora_rank": 4}
    )
    return f"artifacts/{artifact.id}"


@pytest.fixture(scope="session")
def our_trainer(start_service: Callable[..., str]) -> str:
    """Address of our trainer. No worker runs."""
    return start_service("trainer", queue="contract-trainer")


@pytest.fixture(scope="session")
def our_quantizer(start_service: Callable[..., str]) -> str:
    """Address of our quantizer. No worker runs."""
    return start_service("quantizer", queue="contract-quantizer")


@pytest.fixture(scope="session")
def internal_token() -> str:
    """What our evaluator and its gateway show one another."""
    return "contract-token"


@pytest.fixture(scope="session")
def gateway(
    start_service: Callable[..., str], our_trainer: str, internal_token: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """A gateway that knows the trainer's base models: the URL of its REST side, the address of its gRPC side. No replica
    runs.
    """
    port = free_port()
    uploads: Path = tmp_path_factory.mktemp("uploads")
    shared = {"trainer_address": our_trainer, "internal_token": internal_token}
    address = start_service("gateway", http_port=port, upload_dir=uploads, **shared)
    return f"http://127.0.0.1:{port}/v1", address


@pytest.fixture(scope="session")
def our_evaluator(start_service: Callable[..., str], gateway: tuple[str, str], internal_token: str) -> str:
    """Address of our evaluator. No worker runs."""
    return start_service("evaluator", queue="contract-evaluator", gateway_url=gateway[0], internal_token=internal_token)


@pytest.fixture(scope="session")
def foreign_evaluator(
    gateway: tuple[str, str], internal_token: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Address of the evaluator of examples/swap, in an environment that holds nothing of ours. No worker runs."""
    python = _ROOT / ".martlet/envs/swap-example/bin/python"
    if not python.is_file():
        pytest.skip("its environment isn't there; make it with: martlet env sync swap-example")
    address = f"127.0.0.1:{free_port()}"
    log = tmp_path_factory.mktemp("foreign-evaluator") / "service.log"
    command = [str(python), "-P", "-m", "evaluator", "--address", address, "--workers", "0"]
    command += ["--gateway-url", gateway[0], "--gateway-address", gateway[1]]
    environment = {"MARTLET_INTERNAL_TOKEN": internal_token, "PYTHONPATH": str(_ROOT / "examples/swap")}
    with _processes() as start:
        start(command, environment, log, address)
        yield address


@pytest.fixture(scope="session")
def talking_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny ``model`` that talks until it is stopped, and an ``adapter`` on it."""
    python = _ROOT / ".martlet/envs/inference-transformers/bin/python"
    if not python.is_file():
        pytest.skip("no environment with transformers; make it with: martlet env sync inference-transformers")
    directory = tmp_path_factory.mktemp("talking-llama")
    script = _ROOT / "tests/integration/inference/talking_llama.py"
    subprocess.run([python, script, directory], check=True, timeout=280, capture_output=True)
    return directory


@pytest.fixture(scope="session")
def foreign_inference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the foreign inference service."""
    port = free_port()
    log = tmp_path_factory.mktemp("foreign") / "service.log"
    command = [sys.executable, str(_ROOT / "tests/contract/foreign_inference.py"), "--port", str(port)]
    with _processes() as start:
        start(command, dict(os.environ), log, f"127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"


@pytest.fixture
async def open_channel() -> AsyncIterator[Callable[[str], grpc.aio.Channel]]:
    """Opens channels that are closed after the test."""
    channels: list[grpc.aio.Channel] = []

    def open_channel(address: str) -> grpc.aio.Channel:
        channels.append(grpc.aio.insecure_channel(address))
        return channels[-1]

    yield open_channel
    for channel in channels:
        await channel.close()


@pytest.fixture
def try_rule_here() -> Callable[..., object]:
    """Tries a rule on a target; what can't be tried there skips the test, with the reason."""

    async def try_rule_here(rule: Rule, target: Target) -> None:
        try:
            await assert_rule(rule, target)
        except Skipped as skipped:
            pytest.skip(str(skipped))

    return try_rule_here


def _python_of(service: str, environment: str) -> tuple[str, dict[str, str]]:
    """The interpreter of the service's environment; without one ours, with the service's source on the path."""
    python = _ROOT / ".martlet/envs" / environment / "bin/python"
    if python.is_file():
        finds = subprocess.run([python, "-c", f"import martlet_{service}"], capture_output=True, check=False)
        if finds.returncode == 0:
            return str(python), {}
    return sys.executable, {"PYTHONPATH": str(_ROOT / "services" / service / "src")}


@contextmanager
def _processes() -> Iterator[Callable[..., None]]:
    """Gives a function that starts a process and waits until it is healthy; all are stopped at the end."""
    running: list[subprocess.Popen[bytes]] = []

    def start(
        command: list[str],
        environment: dict[str, str],
        log_path: Path,
        address: str,
        ready_seconds: float = _READY_SECONDS,
    ) -> None:
        with log_path.open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        running.append(process)
        _wait_until_healthy(process, address, log_path, ready_seconds)

    try:
        yield start
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], address: str, log_path: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while process.poll() is None and time.monotonic() < deadline:
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=0.5)
            except grpc.RpcError:
                continue
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            time.sleep(0.02)
    state = "runs, but isn't healthy" if process.poll() is None else f"ended with {process.returncode}"
    tail = log_path.read_text(errors="replace")[-3000:]
    pytest.fail(f"{process.args} {state}. End of its log:\n{tail}")
