"""The whole demo as a newcomer meets it: a fresh clone, no environment, empty package caches.

    python benchmarks/demo_cold.py

Runs ``make demo`` there and keeps its ``demo.json`` with the seconds of the whole command. How long packages take to come depends on
where they come from; the figure holds for this machine's package index.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from environment import ROOT, machine, versions, write

RESULTS = ROOT / "benchmarks" / "results" / "demo_cold.json"


def main() -> None:
    """Run it; the command prints the table."""
    before = machine()
    with tempfile.TemporaryDirectory(prefix="martlet-bench-") as scratch:
        clone = Path(scratch) / "martlet"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        caches = {"UV_CACHE_DIR": f"{scratch}/uv", "PIP_CACHE_DIR": f"{scratch}/pip"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MARTLET_")}
        begun = time.monotonic()
        subprocess.run(["make", "demo"], cwd=clone, env={**kept, **caches}, check=True)
        seconds = time.monotonic() - begun
        record = json.loads((clone / ".martlet" / "demo.json").read_text())
    record["command_seconds"] = round(seconds, 1)
    write(RESULTS, {**record, "machine": before, "versions": versions(("openai", "grpcio"))})


if __name__ == "__main__":
    main()
