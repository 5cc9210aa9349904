"""The evaluator of examples/swap in the place of ours, and ours again: what is seen through the gateway and of the container."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core.rpc.context import INTERNAL_TOKEN_KEY, TENANT_KEY
from martlet_core.testing.conformance import run_conformance

from tests.e2e.lifecycle import MODEL
from tests.e2e.stack import ROOT, Stack, check, service_of

OVERLAY = "examples/swap/compose.yml"
#: The services that the overlay speaks of.
SWAPPED = {"evaluator", "evaluator-worker"}
ROWS = 8
_METRIC = "exact_match.accuracy"
_TENANT = "default"


@dataclass(frozen=True)
class Command:
    """The ``martlet`` command, as a user of the published port has it."""

    environment: Mapping[str, str]
    home: Path

    def __call__(self, *arguments: str, code: int = 0) -> Any:
        """Run it with ``--json``; what it printed."""
        argv = [sys.executable, "-m", "martlet_cli", "--home", str(self.home), *arguments, "--json"]
        done = subprocess.run(
            argv, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        said = f"`martlet {' '.join(arguments)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        check(done.returncode == code, said[-3000:])
        return json.loads(done.stdout)


def create(martlet: Command, made: Mapping[str, Any]) -> str:
    """An evaluation of the base model and the tuned one on a few rows that the latter has learnt; its id."""
    asked = ("--dataset", made["file"], "--max_rows", str(ROWS), "--max_tokens", "8", "--concurrency", "2")
    return martlet("evaluate", "create", MODEL, made["model"], *asked)["id"]


def wait_for(martlet: Command, job_id: str, deadline_seconds: float = 300.0) -> dict[str, Any]:
    """Wait until it has succeeded; the job."""
    end = time.monotonic() + deadline_seconds
    while (job := martlet("evaluate", "show", job_id))["state"] != "SUCCEEDED":
        check(job["state"] in ("QUEUED", "RUNNING"), f"the evaluation is {job['state']}: {job}")
        check(time.monotonic() < end, f"the evaluation is still {job['state']} after {deadline_seconds:.0f} s")
        time.sleep(0.5)
    return job


def accuracies(job: Mapping[str, Any], made: Mapping[str, Any]) -> tuple[float, float]:
    """Of the base model and of the tuned one."""
    result = job["result"]
    check((result["rows_used"], result.get("rows_failed", 0)) == (ROWS, 0), f"rows: {result}")
    found = {target["model"]: target["metrics"][_METRIC] for target in result["targets"]}
    check(all(one["low"] <= one["value"] <= one["high"] for one in found.values()), f"intervals: {found}")
    base, tuned = found[MODEL]["value"], found[made["model"]]["value"]
    check(base < tuned, f"accuracy of the base model {base}, of the tuned one {tuned}")
    return base, tuned


def report(martlet: Command, job_id: str, directory: Path) -> int:
    """Fetch a job's report; the bytes of its page."""
    shutil.rmtree(directory, ignore_errors=True)  # an earlier run's
    martlet("evaluate", "report", job_id, "--out", str(directory), "--no-open")
    page = (directory / "report.html").read_text()
    check("accuracy" in page, f"the report says {page[:200]!r}")
    return len(page)


def others(stack: Stack) -> dict[str, tuple[str, str]]:
    """Of each running container that isn't swapped: id and start."""
    return {
        f"{service_of(container)} {container['Name']}": (container["Id"], container["State"]["StartedAt"])
        for container in stack.containers()
        if service_of(container) not in SWAPPED
    }


def container(stack: Stack, image: str) -> dict[str, Any]:
    """The one evaluator that runs, which is made of an image."""
    found = [one for one in stack.containers() if service_of(one) in SWAPPED]
    seen = [(service_of(one), one["Config"]["Image"]) for one in found]
    check(len(found) == 1 and image in found[0]["Config"]["Image"], f"in the evaluator's place are {seen}")
    return found[0]


def holds_one_secret(found: Mapping[str, Any]) -> str:
    """Its variables name no store and its only mount is the internal token."""
    named = {variable.partition("=")[0] for variable in found["Config"]["Env"]}
    stores = sorted(name for name in named if "S3" in name or "REDIS" in name)
    check(not stores, f"it is told of stores: {stores}")
    mounts = [mount["Destination"] for mount in found["Mounts"]]
    check(mounts == ["/run/secrets/internal_token"], f"its mounts are {mounts}")
    return "the internal token is its only mount"


def conforms(found: Mapping[str, Any], token: str, dataset: str) -> str:
    """Every rule of the contract, tried from the host: the engine gives it an address on an inner network too."""
    (network,) = found["NetworkSettings"]["Networks"].values()
    report = run_conformance(
        "evaluator",
        f"{network['IPAddress']}:50054",
        metadata=[(TENANT_KEY, _TENANT), (INTERNAL_TOKEN_KEY, token)],
        timeout_seconds=60.0,
        dataset=dataset,
        other_tenant="umbrella",
        run_seconds=240.0,
    )
    check(report.passed and report.complete, report.table())
    return report.summary().partition(": ")[2]
