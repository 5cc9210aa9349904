"""What a run of the compose test saw: docs/compose-test.md, and figures for benchmarks/report.py."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from benchmarks.environment import machine, write
from tests.e2e.stack import ROOT, Stack, output

PAGE = ROOT / "docs" / "compose-test.md"
RECORD = ROOT / "benchmarks" / "results" / "containers.json"


def versions() -> dict[str, str]:
    """What it ran on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        "commit": output("git", "rev-parse", "--short", "HEAD").strip(),
        **_tools(),
        "machine": f"{os.cpu_count()} cores, {memory / 2**30:.0f} GiB of memory, no GPU",
    }


def _tools() -> dict[str, str]:
    return {
        "engine": output("docker", "version", "--format", "{{.Server.Version}}").strip(),
        "compose": output("docker", "compose", "version", "--short").strip(),
        "buildx": output("docker", "buildx", "version").split()[1],
    }


def image_sizes(*stacks: Stack) -> list[tuple[str, float]]:
    """Name and size in GB of each image that the compose files name, as the engine counts it: the base image in each."""
    configs = [json.loads(stack.capture("config", "--format", "json")) for stack in stacks]
    names = sorted({service["image"] for config in configs for service in config["services"].values()})
    return [
        (name, int(output("docker", "image", "inspect", "--format", "{{.Size}}", name).strip()) / 1e9) for name in names
    ]


def table(phases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The phases as rows of Markdown."""
    rows = ["| phase | seconds | seen |", "|---|---|---|"]
    for name, phase in phases.items():
        seen = "<br>".join(phase["seen"])
        rows.append(f"| {name} | {phase['seconds']:.0f} | {seen} |")
    return rows


def _starts(starts: Mapping[str, Mapping[str, float]]) -> list[str]:
    """How long each container took to be healthy, as rows of Markdown."""
    rows = ["| service | first start, s | after `down`, s | looked at every |", "|---|---|---|---|"]
    for service, seconds in starts["again"].items():
        rows.append(
            f"| {service} | {starts['first'][service]:.1f} | {seconds:.1f} | {starts['every'][service]:.0f} s |"
        )
    seconds = starts["foreign"]["evaluator"]
    rows.append(f"| evaluator of examples/swap, alone | {seconds:.1f} | | {starts['every']['evaluator']:.0f} s |")
    return rows


def write_record(stack: Stack, foreign: Stack, state: Mapping[str, Any]) -> None:
    """Write benchmarks/results/containers.json."""
    starts = state["starts"]
    record = {
        "machine": machine(),
        "versions": _tools(),
        "seconds": starts["again"],
        "seconds_first": starts["first"],
        "seconds_foreign": starts["foreign"],
        "looked_at_every_seconds": starts["every"],
        "image_gb": {name: round(size, 2) for name, size in image_sizes(stack, foreign)},
    }
    write(RECORD, record)


def write_page(stack: Stack, foreign: Stack, state: Mapping[str, Any]) -> None:
    """Write docs/compose-test.md."""
    (overlay,) = set(foreign.files) - set(stack.files)
    lines = [
        "# The compose test's last whole run",
        "",
        "Written by `make compose-test` (as root; [deployment.md](deployment.md) says what it needs). Everything ran in",
        f"containers, from these files: {', '.join(f'`{file}`' for file in stack.files)};",
        f"in the phase `foreign`, `{overlay}` was laid over them.",
        "",
        "| | |",
        "|---|---|",
        *[f"| {name} | {value} |" for name, value in versions().items()],
        "",
        f"`{stack.files[-1]}` builds Valkey and SeaweedFS from their Python wheels, and the base image is Debian's",
        "Python 3.11: no registry could be reached. The images that they stand for are untried",
        "([unchecked.md](unchecked.md)), and their sizes below are the stand-ins'.",
        "",
        *table(state["phases"]),
        "",
        "## Cold start of each container",
        "",
        "Seconds from a container's start to its first healthy answer, as the engine tells of both, all containers starting",
        "side by side on this machine. First: in the phase `up`, with empty volumes. After `down`: in the phase `again`, with",
        "data, models and caches there. A container is looked at as often as the last column says, so a figure is too large by",
        "up to that much and the time of the look itself.",
        "",
        *_starts(state["starts"]),
        "",
        "## Image sizes",
        "",
        "As `docker images` counts them; layers that several share (the base image above all) are on the disk once.",
        "",
        "| image | GB |",
        "|---|---|",
        *[f"| `{name}` | {size:.2f} |" for name, size in image_sizes(stack, foreign)],
        "",
    ]
    PAGE.write_text("\n".join(lines))
