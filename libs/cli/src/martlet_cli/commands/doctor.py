"""``doctor``: can this machine run the platform, and what is missing if not."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from martlet_core.errors import MartletError

from martlet_cli import environments, platform_state
from martlet_cli.context import Context, Subparsers, command
from martlet_cli.layout import Layout, read_json
from martlet_cli.output import size
from martlet_cli.pip_config import base_python, pip_options, uv_environment
from martlet_cli.platform_options import PlatformOptions

_DISK_BYTES = 12e9  # trainer 3 GB, inference 4 GB, package cache, models and data
_MEMORY_BYTES = 6e9  # vLLM 3.5 GB with its smallest cache, trainer 2 GB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``result`` is ``ok``, ``warn`` or ``failed``."""

    check: str
    result: str
    found: str
    remedy: str = ""


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    command(
        subparsers,
        "doctor",
        _doctor,
        "check this machine: Python, package sources, memory, disk, environments, platform",
    )


def _doctor(context: Context, arguments: argparse.Namespace) -> int:
    checks: tuple[Callable[[Layout], Finding], ...] = (
        _torch_source, _python, _uv, _accelerator, _memory, _disk, _servers, _environments, _platform,
    )  # fmt: skip
    findings = []
    for check in checks:
        try:
            findings.append(check(context.layout))
        except MartletError as error:
            findings.append(Finding(check.__name__.strip("_").replace("_", " "), "failed", str(error)))
    context.output.table([asdict(finding) for finding in findings], ("check", "result", "found", "remedy"))
    return 1 if any(finding.result == "failed" for finding in findings) else 0


def _torch_source(layout: Layout) -> Finding:
    """Where the CPU build of PyTorch would come from: the one package that isn't on the usual index."""
    name = "torch source"
    if environments.accelerator() == "cuda":
        return Finding(name, "ok", "the usual package index (CUDA build)")
    index = os.environ.get("MARTLET_TORCH_INDEX") or environments.TORCH_INDEX
    environ = uv_environment(pip_options(base_python()), os.environ)
    if environ.get("UV_FIND_LINKS"):
        return Finding(name, "ok", f"find-links of pip's configuration: {environ['UV_FIND_LINKS']}")
    if environments.is_current(layout, "trainer", "cpu") and environments.is_current(layout, "inference", "cpu"):
        return Finding(name, "ok", "installed already")
    try:
        answer = httpx.head(f"{index}/torch/", timeout=10, follow_redirects=True)
    except httpx.HTTPError as error:
        remedy = "set MARTLET_TORCH_INDEX to a mirror, or give pip a find-links folder that holds the +cpu wheel"
        return Finding(name, "failed", f"{index} doesn't answer: {error}", remedy)
    if answer.status_code >= 400:
        return Finding(
            name,
            "failed",
            f"{index} answers {answer.status_code}",
            "set MARTLET_TORCH_INDEX to an index that has torch+cpu",
        )
    return Finding(name, "ok", index)


def _python(layout: Layout) -> Finding:
    environments.check_python()
    return Finding("python", "ok", f"{sys.version.split()[0]} ({base_python()})")


def _uv(layout: Layout) -> Finding:
    return Finding("uv", "ok", environments.find_uv())


def _accelerator(layout: Layout) -> Finding:
    kind = environments.accelerator()
    if kind == "cuda":
        return Finding("accelerator", "ok", "NVIDIA GPU")
    cores = len(os.sched_getaffinity(0))
    result = "ok" if cores >= 2 else "warn"
    return Finding(
        "accelerator",
        result,
        f"none; {cores} CPU cores",
        "" if cores >= 2 else "training and serving share one core: expect it to be slow",
    )


def _memory(layout: Layout) -> Finding:
    facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(facts["MemAvailable"].split()[0]) * 1024
    enough = available >= _MEMORY_BYTES
    remedy = "" if enough else f"{size(_MEMORY_BYTES)} are wanted to train and serve at the same time"
    return Finding("memory", "ok" if enough else "warn", f"{size(available)} available", remedy)


def _disk(layout: Layout) -> Finding:
    place = layout.home if layout.home.exists() else layout.root
    free = shutil.disk_usage(place).free
    enough = free >= _DISK_BYTES
    remedy = (
        ""
        if enough
        else f"{size(_DISK_BYTES)} are wanted with all environments; MARTLET_HOME and MARTLET_ENVIRONMENTS move them"
    )
    return Finding("disk", "ok" if enough else "warn", f"{size(free)} free in {place}", remedy)


def _servers(layout: Layout) -> Finding:
    from martlet_core.local_servers import seaweedfs_binary, valkey_binary  # heavy, and needed here only

    return Finding("servers", "ok", f"{valkey_binary().name}, {seaweedfs_binary().name}")


def _environments(layout: Layout) -> Finding:
    services = PlatformOptions().services
    wanted = {row["name"]: row["state"] for row in environments.describe(layout) if row["name"] in services}
    found = ", ".join(f"{name} {state}" for name, state in wanted.items())
    if "no lock" in wanted.values():
        return Finding("environments", "failed", found, "a lock is missing in this checkout")
    ready = all(state == "ready" for state in wanted.values())
    return Finding(
        "environments",
        "ok" if ready else "warn",
        found,
        "" if ready else "`martlet up` makes them (or `martlet env sync`)",
    )


def _platform(layout: Layout) -> Finding:
    if not platform_state.running_launcher(layout):
        return Finding("platform", "ok", "down")
    base_url = read_json(layout.client_file).get("base_url", "")
    try:
        answer = httpx.get(f"{base_url.removesuffix('/v1')}/readyz", timeout=5)
    except httpx.HTTPError as error:
        return Finding(
            "platform",
            "failed",
            f"the gateway doesn't answer: {error}",
            "see `martlet status` and `martlet logs gateway`",
        )
    if answer.status_code >= 400:
        return Finding("platform", "warn", f"not ready: {answer.text[:200]}", "see `martlet status`")
    return Finding("platform", "ok", f"up at {base_url}")
