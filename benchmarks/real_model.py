"""The real model of the benchmarks as a directory: SmolLM2-135M-Instruct, prepared once, then kept."""

from __future__ import annotations

import subprocess
from pathlib import Path

from environment import ROOT

REAL_MODEL = "smollm2-135m-instruct"
DIRECTORY = ROOT / ".martlet" / "models" / REAL_MODEL


def prepared() -> Path:
    """Its directory; fetched and unpacked by the quantizer's environment if it isn't there."""
    if not (DIRECTORY / "config.json").is_file():
        command = ["-m", "martlet_inputs.base_models", "prepare", REAL_MODEL, "--out", str(DIRECTORY)]
        subprocess.run([str(ROOT / ".martlet/envs/quantizer-bnb/bin/python"), *command], check=True)
    return DIRECTORY
