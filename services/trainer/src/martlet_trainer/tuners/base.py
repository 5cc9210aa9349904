"""What a tuner is: it makes a base model trainable, and saves what was trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from martlet_trainer.config import TrainingConfig
from martlet_trainer.training.devices import Placement


@dataclass(frozen=True)
class TunerInputs:
    """What a tuner builds from.

    Attributes:
        config: the resolved config.
        placement: device and arithmetic.
        base_model: directory of the base model.
        base_name: the base model's name, written into adapters; never a path.
        tokenizer: the base model's.
        adapter: adapter to go on from; None to start a new one.
        checkpoint: checkpoint to go on from; None for a fresh start.
    """

    config: TrainingConfig
    placement: Placement
    base_model: Path
    base_name: str
    tokenizer: PreTrainedTokenizerBase
    adapter: Path | None = None
    checkpoint: Path | None = None


class Tuner(Protocol):
    """A model with its trainable part."""

    #: The model to train.
    model: Any
    #: Kind of artifact the result is: ``adapter`` or ``model``.
    artifact_kind: str

    def save_weights(self, directory: Path) -> None:
        """Write the trained weights so that ``load_weights`` gives exactly them back; other tools can read them too."""
        ...

    def load_weights(self, directory: Path) -> None:
        """Read weights that ``save_weights`` wrote."""
        ...

    def save_result(self, directory: Path) -> None:
        """Write the finished result, as other tools expect it."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Facts for the artifact's metadata."""
        ...
