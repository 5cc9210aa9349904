"""The headlines example as benchmarks use it: its base model and its rows. Imports nothing but the standard library."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from environment import ROOT

MODEL = "smollm2-135m-instruct"
MODEL_DIRECTORY = Path(os.environ.get("MARTLET_MODELS_DIR", ROOT / ".martlet" / "models")) / MODEL
DATA = ROOT / ".martlet" / "examples" / "headlines"
LORA_RANK = 16
#: The trainer's Python: it has the converter of the model, and pip, which fetches the rows.
TRAINER_PYTHON = ROOT / ".martlet" / "envs" / "trainer" / "bin" / "python"


def prepare_rows() -> None:
    """Fetch the rows and write them in the training format, once."""
    script = ROOT / "examples" / "headlines" / "prepare.py"
    subprocess.run([str(TRAINER_PYTHON), str(script), "--out", str(DATA)], check=True)


def prepare_model() -> None:
    """Fetch the base model and convert it, once."""
    if (MODEL_DIRECTORY / "config.json").is_file():
        return
    command = ["-m", "martlet_inputs.base_models", "prepare", MODEL, "--out", str(MODEL_DIRECTORY)]
    subprocess.run([str(TRAINER_PYTHON), *command], check=True)
