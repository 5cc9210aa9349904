"""The evaluator of examples/swap in the place of ours: a whole platform that knows no other, asked by the command."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from martlet_cli.layout import Layout, read_json
from martlet_cli.testing import RunningPlatform, running_platform
from martlet_core.local_servers import free_port

ROOT = Path(__file__).resolve().parents[3]
MODEL = "smollm2-135m-instruct"
READY_SECONDS = 120.0
StartEvaluator = Callable[[RunningPlatform], None]


@pytest.fixture
def evaluator_address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def platform_without_evaluator(tmp_path: Path, evaluator_address: str) -> Iterator[RunningPlatform]:
    """A platform whose gateway expects an evaluator at an address; the engine repeats the prompt."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MARTLET_EVALUATOR_ADDRESS", evaluator_address)
        arguments = ("--engine", "echo", "--environment", "inference=dev", "--wait", "all")
        with running_platform(tmp_path / "home", *arguments) as running:
            yield running


@pytest.fixture
def start_evaluator(evaluator_address: str, tmp_path: Path) -> Iterator[StartEvaluator]:
    """Starts the foreign evaluator in its own environment, which holds nothing of ours."""
    python = Layout.discover(tmp_path / "home").python("swap-example")
    if not python.is_file():
        pytest.skip("its environment isn't there; make it with: martlet env sync swap-example")
    running: list[subprocess.Popen[bytes]] = []

    def start(platform: RunningPlatform) -> None:
        command = [str(python), "-P", "-m", "evaluator", "--address", evaluator_address]
        command += ["--gateway-url", platform.base_url, "--gateway-address", platform.grpc_address]
        token = read_json(platform.home / "secrets.json")["internal_token"]
        environ = {"MARTLET_INTERNAL_TOKEN": token, "PYTHONPATH": str(ROOT / "examples/swap"), "PATH": os.defpath}
        log = (tmp_path / "evaluator.log").open("wb")
        running.append(subprocess.Popen(command, env=environ, stdout=log, stderr=log))
        with grpc.insecure_channel(evaluator_address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=READY_SECONDS)

    yield start
    for process in running:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_foreign_evaluator_measures_what_is_served(
    platform_without_evaluator: RunningPlatform, start_evaluator: StartEvaluator, tmp_path: Path
) -> None:
    """Slow for a platform of its own: only there is a stage's place free."""
    platform = platform_without_evaluator
    start_evaluator(platform)
    # The engine repeats the question's words up to 16: whoever asks for 16 words with 16 words is right.
    words = " ".join(["swift"] * 16)
    rows = [
        {"messages": [{"role": "user", "content": words}, {"role": "assistant", "content": words}]},
        {"messages": [{"role": "user", "content": words}, {"role": "assistant", "content": "martin"}]},
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    asked = ("evaluate", "create", MODEL, "--dataset", str(data), "--max_tokens", "16", "--max_rows", "4")
    said = platform.martlet(*asked, "--watch")
    job_id = (said[-1] if isinstance(said, list) else said)["id"]
    job = platform.martlet("evaluate", "show", job_id)
    assert job["state"] == "SUCCEEDED", job
    result = job["result"]
    assert (result["rows_read"], result["rows_used"], result["rows_failed"]) == (6, 4, 0)
    [target] = result["targets"]
    accuracy = target["metrics"]["exact_match.accuracy"]
    assert accuracy["value"] == 0.5
    assert accuracy["low"] <= 0.5 <= accuracy["high"]
    out = tmp_path / "report"
    platform.martlet("evaluate", "report", job_id, "--out", str(out), "--no-open")
    assert "0.500" in (out / "report.html").read_text()
    refused = platform.martlet("evaluate", "create", MODEL, "--dataset", str(data), "--suite", "judge", code=2)
    assert "exact_match" in refused["error"]["message"]
