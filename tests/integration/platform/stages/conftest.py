"""A platform with every stage on the echo engine and a tiny model: what drills and mistakes of stages are tried on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from martlet_cli.layout import read_json
from martlet_cli.testing import RunningPlatform, running_platform

ROOT = Path(__file__).parents[4]
TINY = ROOT / "tests/integration/trainer/tiny_llama.py"
#: Only a run that hangs comes near it.
DEADLINE_SECONDS = 900.0
#: Every step that makes something, and where its jobs are listed.
JOBS = {"train": "jobs", "merge": "merge/jobs", "nf4": "quantization/jobs", "evaluate": "evaluation/jobs"}


@dataclass(frozen=True)
class Drill:
    """A platform on the echo engine with every stage, a tiny model to train, and rows.

    Attributes:
        inputs: what the run is given.
    """

    platform: RunningPlatform
    inputs: dict[str, Any]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """A request that succeeds once the gateway is up: the gateway is among what is killed."""
        headers = {"authorization": f"Bearer {self.platform.api_key}"}
        found: list[httpx.Response] = []

        def answered() -> bool:
            with httpx.Client(headers=headers, timeout=30) as client:
                try:
                    found.append(client.request(method, f"{self.platform.base_url}/martlet{path}", json=body))
                except httpx.TransportError:
                    return False
            return found[-1].status_code not in (502, 503, 504)

        self.wait_until(answered, f"{method} {path}")
        assert found[-1].is_success, found[-1].text
        return found[-1].json()

    def submit(self, source: str, **inputs: Any) -> str:
        """A run; returns its id."""
        return self.call("POST", "/runs", {"source": source, "inputs": {**self.inputs, **inputs}})["id"]

    def run(self, run: str) -> dict[str, Any]:
        """The run, its steps by id."""
        shown = self.call("GET", f"/runs/{run}")
        return {**shown, "steps": {step["id"]: step for step in shown["steps"]}}

    def await_step(self, run: str, step: str) -> None:
        """Until the job of a step is at work; for a training, until it has a checkpoint to go on from."""
        seen: dict[str, Any] = {}

        def at_work() -> bool:
            shown = self.run(run)
            assert shown["state"] not in ("SUCCEEDED", "FAILED"), f"{step} was over before anything was killed: {shown}"
            seen.update(shown["steps"][step])
            begun = (seen.get("progress") or {}).get("step", 0) >= 40 if step == "train" else True
            return seen["state"] == "RUNNING" and begun

        self.wait_until(at_work, f"{step} at work; it is {seen}")

    def await_end(self, run: str) -> dict[str, Any]:
        """The run at its end."""
        self.wait_until(lambda: self.run(run)["state"] in ("SUCCEEDED", "FAILED", "CANCELLED"), f"the end of {run}")
        return self.run(run)

    def processes(self) -> dict[str, dict[str, Any]]:
        """What the launcher keeps running, by name."""
        return read_json(self.platform.home / "state.json")["processes"]

    def kill(self, *names: str) -> None:
        """SIGKILL, all at once; returns when the launcher has started each of them again."""
        before = self.processes()
        for name in names:
            os.kill(before[name]["pid"], signal.SIGKILL)

        def back() -> bool:
            now = self.processes()
            return all(now[n]["state"] == "ready" and now[n]["pid"] != before[n]["pid"] for n in names)

        self.wait_until(back, f"{', '.join(names)} to be started again")

    def jobs_of(self, run: str, step: str) -> list[str]:
        """Names of the jobs that were made for a step of a run."""
        found = self.call("GET", f"/{JOBS[step]}?limit=1000")["data"]
        return [job["name"] for job in found if job.get("labels", {}).get("martlet-run") == run]

    def job(self, step: str, name: str) -> dict[str, Any]:
        """The job of a step."""
        return self.call("GET", f"/{JOBS[step]}/{name.partition('/')[2]}")

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Poll a condition to a deadline; the platform says how it is when that passes."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                logs = sorted((self.platform.home / "logs").glob("*.log"))
                tails = "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)
                pytest.fail(f"waited in vain for {what}\n{tails}")
            time.sleep(0.3)


@pytest.fixture(scope="session")
def drill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    """Short leases, so that what a dead worker held is taken up within seconds; an engine so slow that an evaluation lasts."""
    home = tmp_path_factory.mktemp("drills")
    model = home / "models" / "tiny-llama"
    # Wide enough for blocks of 64 weights.
    subprocess.run([ROOT / ".martlet/envs/trainer/bin/python", TINY, model, "128"], check=True, timeout=300)
    settings = {
        "MARTLET_LEASE_SECONDS": "4",
        "MARTLET_RECONCILE_SECONDS": "1",
        "MARTLET_MODEL_ROOTS": str(model.parent),
        "MARTLET_ALLOWED_BASE_URLS": "http://127.0.0.1:2/v1",  # where nobody listens
        "MARTLET_ECHO_TOKENS_PER_SECOND": "20",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    arguments = ("--engine", "echo", "--environment", "inference=dev", "--quantizer-families", "bnb", "--wait", "all")
    rows = home / "rows.jsonl"
    turns = [{"role": "user", "content": "say oak"}, {"role": "assistant", "content": "oak"}]
    rows.write_text((json.dumps({"messages": turns}) + "\n") * 24)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in settings.items():
            patched.setenv(name, value)
        with running_platform(home, *arguments, stages="trainer,quantizer,evaluator") as platform:
            data = platform.martlet("files", "upload", str(rows))[0]["id"].removeprefix("file-")
            yield Drill(platform, {"base": f"file://{model}", "rows": f"artifacts/{data}"})
