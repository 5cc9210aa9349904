"""Full training: every weight moves, or those that the options leave to be trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from martlet_trainer.config import parse_tuner_options
from martlet_trainer.training.heads import write_head
from martlet_trainer.training.models import load_model, save_model
from martlet_trainer.tuners.base import Companion, TunerInputs
from martlet_trainer.tuners.freezing import choose_trained
from martlet_trainer.tuners.options import FullOptions


class FullTuner:
    """Trains float32 weights (arithmetic may be narrower); the result is an ordinary model directory in the base model's type."""

    artifact_kind = "model"

    def __init__(self, inputs: TunerInputs) -> None:
        self._inputs = inputs
        self.companion: Companion = Companion()
        self._options = parse_tuner_options(inputs.config.tuner)
        self.model: Any = self._load(inputs)
        self._choose()

    def _load(self, inputs: TunerInputs) -> Any:
        """The model with 32-bit weights: the base model, or that of a checkpoint."""
        start = inputs.checkpoint or inputs.base_model
        return load_model(start, torch.float32, inputs.placement.device, head=inputs.head)

    def _choose(self) -> None:
        """Set which weights are trained."""
        assert isinstance(self._options, FullOptions)
        choose_trained(self.model, self._options)

    def save_weights(self, directory: Path) -> None:
        """Write a model directory with float32 weights."""
        save_model(self.model, directory, self._inputs.base_model)
        write_head(self._inputs.head, self.model, directory)

    def load_weights(self, directory: Path) -> None:
        """Read a model directory."""
        loaded = load_model(directory, torch.float32, torch.device("cpu"), head=self._inputs.head)
        self.model.load_state_dict(loaded.state_dict())

    def save_result(self, directory: Path) -> None:
        """Write model and tokenizer, the weights in the base model's own type. The model in memory is changed by it."""
        config = json.loads((self._inputs.base_model / "config.json").read_text(encoding="utf-8"))
        stored = config.get("dtype") or config.get("torch_dtype") or "float32"
        self.model.to(getattr(torch, str(stored), torch.float32))
        self.save_weights(directory)
        self._inputs.tokenizer.save_pretrained(directory)

    def metadata(self) -> dict[str, Any]:
        """Base model, for whoever asks where the weights came from, and how they were trained."""
        options = self._options.model_dump(exclude_defaults=True)
        return {
            "base_model": self._inputs.base_name,
            "tuner": self._inputs.config.tuner.kind,
            **({"options": options} if options else {}),
        }
