"""The whole demo as a benchmark: accuracy before and after, training speed, times, with the machine they were taken on.

    python benchmarks/demo.py

Runs ``martlet demo`` with environments in place and keeps its ``demo.json`` beside the other results.
"""

from __future__ import annotations

import json
import subprocess

from environment import ROOT, machine, versions, write

RESULTS = ROOT / "benchmarks" / "results" / "demo.json"
COMMAND = ROOT / ".martlet" / "envs" / "cli" / "bin" / "martlet"


def main() -> None:
    """Run it; the command prints the table."""
    before = machine()
    subprocess.run([str(COMMAND), "demo"], check=True)
    record = json.loads((ROOT / ".martlet" / "demo.json").read_text())
    write(RESULTS, {**record, "machine": before, "versions": versions(("openai", "grpcio"))})


if __name__ == "__main__":
    main()
