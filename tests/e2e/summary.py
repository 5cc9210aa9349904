"""What a run of the compose test saw, as a table and as docs/compose-test.md."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tests.e2e.stack import ROOT, Stack, output

PAGE = ROOT / "docs" / "compose-test.md"


def versions() -> dict[str, str]:
    """What it ran on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        "commit": output("git", "rev-parse", "--short", "HEAD").strip(),
        "engine": output("docker", "version", "--format", "{{.Server.Version}}").strip(),
        "compose": output("docker", "compose", "version", "--short").strip(),
        "buildx": output("docker", "buildx", "version").split()[1],
        "machine": f"{os.cpu_count()} cores, {memory / 2**30:.0f} GiB of memory, no GPU",
    }


def image_sizes(stack: Stack) -> list[tuple[str, float]]:
    """Name and size in GB of each image that the compose files name, as the engine counts it: the base image in each."""
    config = json.loads(stack.capture("config", "--format", "json"))
    names = sorted({service["image"] for service in config["services"].values()})
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


def write_page(stack: Stack, phases: Mapping[str, Mapping[str, Any]]) -> None:
    """Write docs/compose-test.md."""
    lines = [
        "# The compose test's last whole run",
        "",
        "Written by `make compose-test` (as root; [deployment.md](deployment.md) says what it needs). Everything ran in",
        f"containers, from these files: {', '.join(f'`{file}`' for file in stack.files)}.",
        "",
        "| | |",
        "|---|---|",
        *[f"| {name} | {value} |" for name, value in versions().items()],
        "",
        "The last file builds Valkey and SeaweedFS from their Python wheels, and the base image is Debian's Python 3.11: no",
        "registry could be reached. The images that they stand for are untried ([unchecked.md](unchecked.md)), and their",
        "sizes below are the stand-ins'.",
        "",
        *table(phases),
        "",
        "## Image sizes",
        "",
        "As `docker images` counts them; layers that several share (the base image above all) are on the disk once.",
        "",
        "| image | GB |",
        "|---|---|",
        *[f"| `{name}` | {size:.2f} |" for name, size in image_sizes(stack)],
        "",
    ]
    PAGE.write_text("\n".join(lines))
