"""What a tuner is: it makes a base model trainable, and saves what was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from martlet_trainer.config import TrainingConfig
from martlet_trainer.training.devices import Placement
from martlet_trainer.training.heads import CAUSAL_LM, Head


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
        head: what the model is to end in.
    """

    config: TrainingConfig
    placement: Placement
    base_model: Path
    base_name: str
    tokenizer: PreTrainedTokenizerBase
    adapter: Path | None = None
    checkpoint: Path | None = None
    head: Head = CAUSAL_LM


@dataclass(frozen=True)
class FirstBatch:
    """A batch that a training begins with, for tuners whose start depends on the data.

    Attributes:
        real: which inputs are no padding; None where none is. Shape (batch, length), bool.
        loss: computes its loss, for each unit of weight, and its gradient's graph.
    """

    real: torch.Tensor | None
    loss: Callable[[], torch.Tensor]


class Companion:
    """What a tuner does beside the steps of a training. This one does nothing; others say more in the methods that they need."""

    def meet_data(self, batches: Iterable[FirstBatch]) -> None:
        """Before a fresh training. The batches are the same ones in all processes.

        Raises:
            InvalidArgument: too little data for this start.
        """

    def begin(self, total_steps: int, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step, also of a training that goes on.

        Raises:
            InvalidArgument: the tuner's options don't fit so many steps.
        """

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave."""

    def before_step(self, step: int) -> None:
        """Before the forward passes of a step, counted from 0."""

    def penalty(self) -> torch.Tensor | None:
        """What is added to the loss of a step for its gradient's sake; reports leave it out."""
        return None

    def after_step(self, step: int) -> None:
        """After the optimizer's step, counted from 0, while its gradients are still there."""

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint must hold of it: numbers, lists, tensors. Empty for nothing."""
        return {}


class Tuner(Protocol):
    """A model with its trainable part."""

    #: The model to train.
    model: Any
    #: Kind of artifact the result is: ``adapter`` or ``model``.
    artifact_kind: str
    #: What it does beside each step.
    companion: Companion

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
