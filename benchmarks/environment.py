"""What a benchmark's figures were taken on and with, and where they are written."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system, Python, and how busy it was when this was called."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return {
        "cpu": next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor()),
        "vector_units": [name for name in ("avx2", "avx512f", "amx_tile") if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "python": platform.python_version(),
    }


def versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of packages in this interpreter's environment."""
    return {name: version(name) for name in names}


def versions_in(python: Path, names: Iterable[str]) -> dict[str, str]:
    """Installed versions of packages in another interpreter's environment."""
    code = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {list(names)}}}))"
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def told_by(command: Sequence[str], **environ: str) -> Any:
    """What a process says in its last line, as JSON; it looks for nothing at hubs. SystemExit with its errors if it fails.

    Args:
        command: its command line.
        environ: variables beside ours.
    """
    # Waiting threads sleep on all sides alike; several processes' worth of spinning threads would measure the scheduler.
    variables = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", **environ}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().split("\n")[-1])


def in_turn(sides: Iterable[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Each side once a round, every other round in reverse: (round, side)."""
    names = list(sides)
    for number in range(rounds):
        yield from ((number, name) for name in (reversed(names) if number % 2 else names))


def medians(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each side's runs, the median of each number."""
    return {
        side: {key: statistics.median(values[key] for values in found) for key in found[0]}
        for side, found in runs.items()
    }


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, smallest and largest of several measurements."""
    found = list(values)
    return {"median": round(statistics.median(found), 4), "min": round(min(found), 4), "max": round(max(found), 4)}


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Keep a record beside the others."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {path.relative_to(ROOT)}")
