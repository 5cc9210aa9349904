"""The ``martlet`` command against a whole platform: what a person types, what a script reads."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from martlet_cli.testing import RunningPlatform

MODEL = "smollm2-135m-instruct"
PROCESSES = {"valkey", "seaweedfs", "trainer", "trainer-worker", "gateway", "gateway-worker", "inference"}


@pytest.fixture(scope="module")
def trained(platform: RunningPlatform, rows: Path) -> dict[str, Any]:
    """A job that ``martlet train --watch`` ran to its end."""
    argv = f"train --model {MODEL} --dataset {rows} --train_type lora --lora_rank 4 --max_steps 4 --save_steps 2"
    return platform.martlet(*argv.split(), "--suffix", "command", "--watch")[-1]


def test_status_shows_every_process(platform: RunningPlatform) -> None:
    status = platform.martlet("status")
    assert status["phase"] == "up"
    running = {process["name"]: process for process in status["processes"]}
    assert set(running) == PROCESSES
    assert {process["state"] for process in running.values()} == {"ready"}
    assert all(process["resident_bytes"] > 1e6 for process in running.values())


def test_secrets_are_for_their_owner(platform: RunningPlatform) -> None:
    for name in ("client.json", "secrets.json"):
        assert stat.S_IMODE((platform.home / name).stat().st_mode) == 0o600
    for name in ("logs", "data"):
        assert stat.S_IMODE((platform.home / name).stat().st_mode) == 0o700
    spoken = "".join(path.read_text() for path in (platform.home / "logs").glob("*.log") if path.stem != "launcher")
    secrets = json.loads((platform.home / "secrets.json").read_text())
    for name, secret in secrets.items():
        assert secret not in spoken, f"{name} is in a log"


def test_train_with_swifts_arguments(trained: dict[str, Any]) -> None:
    assert trained["status"] == "succeeded"
    assert trained["martlet"]["tuner"]["lora_rank"] == 4
    assert trained["martlet"]["progress"]["step"] == 4
    assert trained["martlet"]["device"]
    assert trained["fine_tuned_model"].startswith(f"ft:{MODEL}:default:command:")


def test_jobs_list_and_show(platform: RunningPlatform, trained: dict[str, Any]) -> None:
    assert trained["id"] in {job["id"] for job in platform.martlet("jobs", "list")}
    shown = platform.martlet("jobs", "show", trained["id"])
    assert shown["events"]
    assert [checkpoint["step_number"] for checkpoint in shown["checkpoints"]]
    text = platform.run("jobs", "show", trained["id"]).stdout
    assert trained["fine_tuned_model"] in text
    assert "training\tmessages\t32\t32\t0\t0\t" in text, "the data report"
    assert [line.split()[1] for line in text.splitlines() if line.startswith("tuner.lora_rank ")] == ["4"]


def test_models_and_chat(platform: RunningPlatform, trained: dict[str, Any]) -> None:
    names = {model["id"] for model in platform.martlet("models", "list")}
    assert {MODEL, trained["fine_tuned_model"]} <= names
    spoken = platform.run("chat", "--model", trained["fine_tuned_model"], "--max_tokens", "4", "one two three four")
    assert spoken.returncode == 0, spoken.stderr
    assert spoken.stdout.strip()


def test_merges_come_and_go(platform: RunningPlatform, trained: dict[str, Any]) -> None:
    made = platform.martlet("merge", trained["fine_tuned_model"], "--suffix", "folded")
    assert made["spec"]["adapter"] == trained["fine_tuned_model"]
    assert platform.martlet("merge", "cancel", made["id"])["state"] in ("CANCELLED", "CANCELLING")
    seen = platform.martlet("merge", "watch", made["id"], code=1)
    assert (seen[-1] if isinstance(seen, list) else seen)["state"] == "CANCELLED"
    assert [job["id"] for job in platform.martlet("merge", "list")] == [made["id"]]
    assert platform.martlet("merge", "show", made["name"])["state"] == "CANCELLED"


def test_download_what_was_trained(platform: RunningPlatform, trained: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    artifact = trained["martlet"]["model_artifact"]
    done = platform.martlet("artifacts", "download", artifact, "--out", str(out))
    assert done["files"] == len(list(out.rglob("*.*")))
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == 4
    listed = platform.martlet("artifacts", "list", "--kind", "adapter")
    assert artifact in {f"artifacts/{item['id']}" for item in listed}


def test_keys_come_and_go(platform: RunningPlatform) -> None:
    made = platform.martlet("keys", "create", "acme", "--name", "for a test")
    assert made["secret"].startswith("mk-")
    assert made["scope"] == "user"
    listed = platform.martlet("keys", "list", "--tenant", "acme")
    assert [key["id"] for key in listed] == [made["id"]]
    assert made["secret"] not in json.dumps(listed)
    assert platform.martlet("keys", "revoke", made["id"])["revoke_time"] > 0
    assert platform.martlet("keys", "create", "ops", "--operator")["scope"] == "operator"
    ours = platform.martlet("keys", "list", "--tenant", "default")
    assert [key["scope"] for key in ours] == ["operator"], "whoever starts the platform runs it"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("jobs", "show", "ftjob-doesnotexist"), "ftjob-doesnotexist"),
        (("chat", "--model", "smollm2-135m-instrukt", "hi"), "smollm2-135m-instruct"),
        (("files", "upload", "/nowhere/rows.jsonl"), "there is no such file"),
        (("artifacts", "show", "doesnotexist"), "doesnotexist"),
        (("train", "--model", MODEL, "--dataset", "rows-that-are-not-here.jsonl"), "there is no such file"),
    ],
)
def test_mistakes_are_named(platform: RunningPlatform, argv: tuple[str, ...], message: str) -> None:
    done = platform.run(*argv, "--json")
    assert done.returncode in (1, 2)
    assert message in json.loads(done.stdout)["error"]["message"]


def test_a_second_up_is_refused(platform: RunningPlatform) -> None:
    done = platform.run("up", "--detach", "--engine", "echo", "--stages", "trainer", "--json")
    assert done.returncode == 1
    assert "up already" in json.loads(done.stdout)["error"]["message"]


def test_a_killed_gateway_comes_back(platform: RunningPlatform, trained: dict[str, Any]) -> None:
    def gateway() -> dict[str, Any]:
        processes = platform.martlet("status")["processes"]
        return next(process for process in processes if process["name"] == "gateway")

    before = gateway()
    os.kill(before["pid"], signal.SIGKILL)
    end = time.monotonic() + 60
    while (now := gateway())["state"] != "ready" or now["pid"] == before["pid"]:
        assert time.monotonic() < end, now
        time.sleep(0.1)
    assert now["restarts"] == before["restarts"] + 1
    assert platform.martlet("jobs", "show", trained["id"])["status"] == "succeeded"


def test_a_restart_keeps_all(platform: RunningPlatform, trained: dict[str, Any]) -> None:
    address, key = platform.base_url, platform.api_key
    assert platform.run("down").returncode == 0
    assert platform.martlet("status", code=1)["phase"] == "down"
    up = [
        "up",
        "--detach",
        "--engine",
        "echo",
        "--environment",
        "inference=dev",
        "--stages",
        "trainer",
        "--wait",
        "all",
    ]
    done = platform.run(*up, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (platform.base_url, platform.api_key) == (address, key), "same ports, same key"
    assert platform.martlet("jobs", "show", trained["id"])["fine_tuned_model"] == trained["fine_tuned_model"]
    assert platform.martlet("chat", "--model", trained["fine_tuned_model"], "again")["choices"]
