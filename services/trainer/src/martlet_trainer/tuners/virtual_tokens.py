"""Virtual tokens in front of each row: prompt tuning, prefix tuning and P-tuning, by peft.

peft's file of an adapter has the tokens alone. What they are trained through (a network, with P-tuning) lies beside it in checkpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
from peft import PeftConfig
from safetensors.torch import load_file, save_file

from martlet_trainer.tuners.base import TunerInputs
from martlet_trainer.tuners.other_adapters import OtherAdapter

_ENCODER_FILE = "prompt_encoder.safetensors"


class VirtualTokensTuner(OtherAdapter):
    """Trains tokens that stand in front of each row, and nothing of the model."""

    def _adapter_config(self, inputs: TunerInputs) -> PeftConfig:
        return getattr(peft, inputs.config.tuner.facts.peft_config)(task_type="CAUSAL_LM", **self._options)

    @property
    def _encoder(self) -> Any:
        return self.model.prompt_encoder[self.model.active_adapter]

    def save_weights(self, directory: Path) -> None:
        """See ``Tuner``."""
        super().save_weights(directory)
        weights = {name: tensor.cpu().contiguous() for name, tensor in self._encoder.state_dict().items()}
        save_file(weights, directory / _ENCODER_FILE)

    def load_weights(self, directory: Path) -> None:
        """See ``Tuner``."""
        self._encoder.load_state_dict(load_file(directory / _ENCODER_FILE))

    def save_result(self, directory: Path) -> None:
        """A peft directory: the tokens."""
        super().save_weights(directory)

    def metadata(self) -> dict[str, Any]:
        """Base model, kind and options."""
        return {"base_model": self._name, "tuner": self._kind, "options": self._options}
