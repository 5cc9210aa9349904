"""NEFTune (arXiv 2310.05914): noise on the embeddings of training batches, so that a model learns less by heart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from martlet_trainer.training.batches import Batch
from martlet_trainer.training.computation import Computation
from martlet_trainer.training.loss import Loss, Predictions


class _Noise:
    """Adds noise to what the input embeddings give, in training mode: uniform in +-alpha / sqrt(length x width)."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        #: Tokens of each token's row; set for each batch. Shape (batch, length).
        self.lengths: torch.Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if not module.training or self.lengths is None:
            return None
        limit = self._alpha / (self.lengths * output.shape[-1]).sqrt().unsqueeze(-1)
        return output + torch.empty_like(output).uniform_(-1.0, 1.0) * limit.to(output.dtype)


def with_noise(computation: Computation, model: Any, alpha: float | None) -> Computation:
    """The computation with noise on the model's embeddings; the same one where ``alpha`` is None."""
    if alpha is None:
        return computation
    noise = _Noise(alpha)
    model.get_input_embeddings().register_forward_hook(noise)

    def objective(model: nn.Module, batch: Batch) -> Loss:
        noise.lengths = batch.lengths
        return computation.objective(model, batch)

    def log_probs(model: nn.Module, batch: Batch) -> torch.Tensor:
        noise.lengths = batch.lengths
        return computation.log_probs(model, batch)

    def predict(model: nn.Module, batch: Batch) -> Predictions:
        noise.lengths = batch.lengths
        return computation.predict(model, batch)

    return replace(computation, objective=objective, log_probs=log_probs, predict=predict)
