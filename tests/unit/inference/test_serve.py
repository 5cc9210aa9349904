"""``python -m martlet_inference serve`` as its operator meets it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from martlet_inference.replica import own_address
from martlet_inference.settings import InferenceSettings

COMMAND = [sys.executable, "-m", "martlet_inference", "serve"]


def environment(**settings: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MARTLET_")}
    return inherited | {f"MARTLET_{name.upper()}": value for name, value in settings.items()}


def test_a_wrong_setting_is_named_with_its_remedy() -> None:
    env = environment(engine="magic", max_lora_rank="17", drain_seconds="-1")
    done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "MARTLET_ENGINE: Input should be 'vllm', 'transformers' or 'echo'" in done.stderr
    assert "MARTLET_MAX_LORA_RANK: Value error, is 17; must be one of 0, 8, 16," in done.stderr
    assert "MARTLET_DRAIN_SECONDS" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "org/model"}, "pin its commit with MARTLET_MODEL_REVISION"),
        ({"model": "m", "model_dir": "/"}, "there is no config.json in it"),
    ],
)
def test_a_model_that_can_never_be_served_ends_it(settings: dict[str, str], message: str) -> None:
    env = environment(engine="echo", resolve_models="false", grpc_address="127.0.0.1:0", **settings)
    done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_it_serves_until_sigterm_and_ends_cleanly(tmp_path: Path) -> None:
    log = tmp_path / "log"
    env = environment(engine="echo", resolve_models="false", model="m", grpc_address="127.0.0.1:0")
    with log.open("wb") as output:
        process = subprocess.Popen(COMMAND, env=env, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not re.search(r"serving gRPC on port \d+", log.read_text()):
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()


def test_settings_come_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENGINE": "echo", "MAX_LORA_RANK": "16", "RESOLVE_MODELS": "false"}.items():
        monkeypatch.setenv(f"MARTLET_{name}", value)
    settings = InferenceSettings()  # pyright: ignore[reportCallIssue]
    assert (settings.engine, settings.max_lora_rank, settings.resolve_models) == ("echo", 16, False)


def test_a_replica_on_all_interfaces_gives_its_machines_name() -> None:
    assert own_address("127.0.0.1:0", 7) == "127.0.0.1:7"
    assert own_address("0.0.0.0:50053", 50053) == f"{os.uname().nodename}:50053"
