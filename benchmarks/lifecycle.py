"""The whole life cycle as a benchmark: every variant's accuracy, size and speed, and the command's time.

    python benchmarks/lifecycle.py

Runs ``martlet demo-lifecycle`` with environments in place and keeps its ``lifecycle.json`` beside the other results.
"""

from __future__ import annotations

import json
import subprocess

from environment import ROOT, machine, versions, write

RESULTS = ROOT / "benchmarks" / "results" / "lifecycle.json"
COMMAND = ROOT / ".martlet" / "envs" / "cli" / "bin" / "martlet"


def main() -> None:
    """Run it; the command prints the table."""
    before = machine()
    subprocess.run([str(COMMAND), "demo-lifecycle"], check=True)
    record = json.loads((ROOT / ".martlet" / "lifecycle.json").read_text())
    write(RESULTS, {**record, "machine": before, "versions": versions(("openai", "grpcio"))})


if __name__ == "__main__":
    main()
