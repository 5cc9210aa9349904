"""Which method quantizes which architecture here: every cell of docs/support/quantization.md is a job that is really run.

    python benchmarks/support_quantization.py [--only METHOD/ARCHITECTURE] [--again] [--page] [--limit SECONDS]

Each method works on a tiny model of each architecture and on SmolLM2-135M-Instruct: the job quantizes, reads the result back, measures
it; then vLLM serves what was written. An outcome is kept in docs/support/quantization.json as it is made, and a cell that is there
isn't run again (``--again`` does). ``--page`` writes the page from the JSON and runs nothing. Needs the environments of all families and
of inference: ``martlet env sync inference quantizer-bnb quantizer-llmcompressor quantizer-gguf quantizer-awq quantizer-gptqmodel``.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from environment import ROOT, machine
from headlines import MODEL_DIRECTORY, prepare_model
from support_page import ARCHITECTURES, COLUMNS, DATA, PAGE, Column, page
from support_tiny_models import CONFIGS

WORK = ROOT / ".martlet" / "support"
ENVIRONMENTS = ROOT / ".martlet" / "envs"
FAMILIES = ("bnb", "gguf", "llmcompressor", "gptqmodel", "awq")
#: Nothing is judged by them: tiny models are near chance.
_LIMITS = {"max_perplexity_ratio": 1e6}
_CALIBRATION = {"tiny": {"max_rows": 16, "sequence_length": 256}, "real": {"max_rows": 16, "sequence_length": 128}}


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*/*", help="METHOD/ARCHITECTURE; * and ? are allowed")
    parser.add_argument("--again", action="store_true", help="run cells that have an outcome, too")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one cell")
    parser.add_argument("--engine-limit", type=float, default=240, help="seconds for vLLM to serve one cell")
    arguments = parser.parse_args()
    if not arguments.page:
        store = Store(DATA)
        cells = [(c, a) for a in ARCHITECTURES for c in COLUMNS if fnmatch(f"{c.name}/{a}", arguments.only)]
        make_models({architecture for _, architecture in cells})
        for family in FAMILIES:
            quantize(family, [cell for cell in cells if cell[0].family == family], store, arguments)
        serve(cells, store, arguments)
    PAGE.write_text(page(json.loads(DATA.read_text())))
    print(f"written to {PAGE.relative_to(ROOT)}")


class Store:
    """The outcomes, kept in a file after each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Any]:
        """All there is."""
        return json.loads(self._path.read_text()) if self._path.is_file() else {"cells": {}}

    def has(self, key: str, part: str) -> bool:
        """Whether a part of a cell (``job``, ``engine``) has an outcome."""
        return part in self.read()["cells"].get(key, {})

    def keep(self, key: str, part: str, outcome: Mapping[str, Any]) -> None:
        """Write one outcome."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with WORK.joinpath("lock").open("w") as lock:  # several commands may run side by side
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._keep(key, part, outcome)

    def _keep(self, key: str, part: str, outcome: Mapping[str, Any]) -> None:
        record = self.read()
        cell = record["cells"].setdefault(key, {})
        if part == "job":
            cell.pop("engine", None)  # it served another model
        cell[part] = {**outcome, "date": datetime.now(UTC).strftime("%Y-%m-%d")}
        record["cells"] = dict(sorted(record["cells"].items()))
        record["machine"] = {k: v for k, v in machine().items() if k != "load_average"}
        self._path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def python_of(environment: str) -> str:
    """Interpreter of an environment; ends the command where it isn't there."""
    python = ENVIRONMENTS / environment / "bin" / "python"
    if not python.is_file():
        raise SystemExit(f"the environment {environment} isn't there; make it with: martlet env sync {environment}")
    return str(python)


def model_of(architecture: str) -> Path:
    """Directory of the unquantized model."""
    return MODEL_DIRECTORY if architecture == "smollm2" else WORK / "models" / architecture


def workdir_of(key: str) -> Path:
    """Working directory of a cell's job; what the method wrote is in ``output/model``."""
    return WORK / "jobs" / key.replace("/", "-").replace(" ", "-")


def make_models(architectures: set[str]) -> None:
    """Make the models that aren't there."""
    tiny = sorted(name for name in architectures & set(CONFIGS) if not (model_of(name) / "config.json").is_file())
    if tiny:
        command = [
            python_of("quantizer-bnb"),
            str(ROOT / "benchmarks/support_tiny_models.py"),
            str(WORK / "models"),
            *tiny,
        ]
        subprocess.run(command, check=True, env=environ())
    if "smollm2" in architectures:
        prepare_model()


def environ() -> dict[str, str]:
    """One thread unless it is said otherwise; no hub."""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    env = {**threads, **os.environ, **quiet}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return env


def job_config(column: Column, architecture: str) -> dict[str, Any]:
    """The fields of ``QuantizationSpec`` of a cell."""
    config: dict[str, Any] = {
        "model": architecture,
        "method": column.method,
        "options": dict(column.options),
        **_LIMITS,
    }
    config["sample_prompts"] = ["What is the capital of France?"]
    if column.calibrated:
        config["calibration"] = _CALIBRATION["real" if architecture == "smollm2" else "tiny"]
    pythons = {name: ENVIRONMENTS / f"quantizer-{name}" / "bin/python" for name in FAMILIES}
    return {**config, "engine_pythons": {name: str(path) for name, path in pythons.items() if path.is_file()}}


def quantize(family: str, cells: list[tuple[Column, str]], store: Store, arguments: argparse.Namespace) -> None:
    """Run a family's jobs."""
    specs = [
        {
            "key": column.key(architecture),
            "config": job_config(column, architecture),
            "model": str(model_of(architecture)),
            "workdir": str(workdir_of(column.key(architecture))),
            "forked": architecture != "smollm2",
            "limit_seconds": arguments.limit * (4 if architecture == "smollm2" else 1),
        }
        for column, architecture in cells
        if arguments.again or not store.has(column.key(architecture), "job")
    ]
    if specs:
        command = [python_of(f"quantizer-{family}"), str(ROOT / "benchmarks/support_job.py")]
        listen(
            command,
            specs,
            WORK / f"{family}-{os.getpid()}.log",
            lambda outcome: store.keep(outcome.pop("key"), "job", outcome),
        )


def serve(cells: list[tuple[Column, str]], store: Store, arguments: argparse.Namespace) -> None:
    """Let vLLM serve what was written, and the unquantized models to compare with."""
    found = store.read()["cells"]
    wanted = [
        column.key(architecture)
        for column, architecture in cells
        if column.method != "gguf"
        and found.get(column.key(architecture), {}).get("job", {}).get("reloaded") == "yes"
        and (arguments.again or "engine" not in found[column.key(architecture)])
    ]
    specs = [
        {
            "key": key,
            "base": str(model_of(key.split("/")[1])),
            "model": str(workdir_of(key) / "output/model"),
            "rows": str(workdir_of(key) / "evaluation.jsonl"),
            "measured_ratio": found[key]["job"]["perplexity_ratio"],
            "forked": not key.endswith("/smollm2"),
            "limit_seconds": arguments.engine_limit,
        }
        for key in wanted
    ]
    if specs:
        command = [python_of("inference"), str(ROOT / "benchmarks/support_engine.py")]
        listen(
            command,
            specs,
            WORK / f"vllm-{os.getpid()}.log",
            lambda outcome: store.keep(outcome.pop("key"), "engine", outcome),
        )


def listen(command: list[str], specs: list[dict[str, Any]], log: Path, keep: Any) -> None:
    """Run a process over specs and keep each outcome when it comes; what libraries print goes to the log."""
    WORK.mkdir(parents=True, exist_ok=True)
    file = log.with_suffix(".json")
    file.write_text(json.dumps(specs))
    read, write = os.pipe()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, str(file), str(write)], stdout=output, stderr=output, pass_fds=(write,), env=environ()
        )
        os.close(write)
        with os.fdopen(read) as lines:
            for line in lines:
                outcome = json.loads(line)
                told = {name: value for name, value in outcome.items() if isinstance(value, str)}
                print(json.dumps(told)[:300], flush=True)
                keep(outcome)
    if process.wait():
        print(f"{command[1]} ended with code {process.returncode}; see {log}", file=sys.stderr)


if __name__ == "__main__":
    main()
