"""The whole demos as a newcomer meets them: a fresh clone, no environment, empty package caches.

    python benchmarks/demo_cold.py [--only demo|demo-lifecycle]

Runs ``make demo`` and ``make demo-lifecycle`` there, each in a clone and with caches of its own, and keeps what they wrote
(``demo.json``, ``lifecycle.json``) with the seconds of the whole command. How long packages take to come depends on where they come
from; the figures hold for this machine's package index.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from environment import ROOT, machine, versions, write

RESULTS = ROOT / "benchmarks" / "results"
#: A goal of the Makefile -> the record that it leaves in ``.martlet/``, and the result that is kept of it.
GOALS = {"demo": ("demo.json", "demo_cold.json"), "demo-lifecycle": ("lifecycle.json", "lifecycle_cold.json")}


def main() -> None:
    """Run them; the commands print their tables."""
    parser = argparse.ArgumentParser(description="The demos in fresh clones with empty package caches.")
    parser.add_argument("--only", choices=sorted(GOALS), help="one of them; default: all")
    chosen = parser.parse_args().only
    for goal in [chosen] if chosen else GOALS:
        _run(goal)


def _run(goal: str) -> None:
    before = machine()
    left, kept_as = GOALS[goal]
    with tempfile.TemporaryDirectory(prefix="martlet-bench-") as scratch:
        clone = Path(scratch) / "martlet"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        caches = {"UV_CACHE_DIR": f"{scratch}/uv", "PIP_CACHE_DIR": f"{scratch}/pip"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MARTLET_")}
        begun = time.monotonic()
        subprocess.run(["make", goal], cwd=clone, env={**kept, **caches}, check=True)
        seconds = time.monotonic() - begun
        record = json.loads((clone / ".martlet" / left).read_text())
    record["command_seconds"] = round(seconds, 1)
    write(RESULTS / kept_as, {**record, "machine": before, "versions": versions(("openai", "grpcio"))})


if __name__ == "__main__":
    main()
