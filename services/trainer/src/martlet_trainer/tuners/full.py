"""Full training: every weight moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from martlet_trainer.training.models import load_model, save_model
from martlet_trainer.tuners.base import TunerInputs


class FullTuner:
    """Trains float32 weights (arithmetic may be narrower); the result is an ordinary model directory in the base model's type."""

    artifact_kind = "model"

    def __init__(self, inputs: TunerInputs) -> None:
        self._inputs = inputs
        self.model: Any = load_model(inputs.checkpoint or inputs.base_model, torch.float32, inputs.placement.device)
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())

    def save_weights(self, directory: Path) -> None:
        """Write a model directory with float32 weights."""
        save_model(self.model, directory, self._inputs.base_model)

    def load_weights(self, directory: Path) -> None:
        """Read a model directory."""
        loaded = load_model(directory, torch.float32, torch.device("cpu"))
        self.model.load_state_dict(loaded.state_dict())

    def save_result(self, directory: Path) -> None:
        """Write model and tokenizer, the weights in the base model's own type. The model in memory is changed by it."""
        config = json.loads((self._inputs.base_model / "config.json").read_text(encoding="utf-8"))
        stored = config.get("dtype") or config.get("torch_dtype") or "float32"
        self.model.to(getattr(torch, str(stored), torch.float32))
        save_model(self.model, directory, self._inputs.base_model)
        self._inputs.tokenizer.save_pretrained(directory)

    def metadata(self) -> dict[str, Any]:
        """Base model, for whoever asks where the weights came from."""
        return {"base_model": self._inputs.base_name, "tuner": "full"}
