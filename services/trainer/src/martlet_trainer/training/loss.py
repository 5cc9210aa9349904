"""Next-token loss that never holds more than a slice of the logits.

The output head is applied to the positions that predict a target and to nothing else, slice by slice; a slice's gradient is taken at once, so
no logits are kept for the backward pass and none are computed twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from martlet_trainer.training.batches import Batch

#: Bytes of logits in one slice.
_SLICE_BYTES = 64 * 1024 * 1024
#: Config keys of models that change the logits behind the output head.
_SCALED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier", "dim_model_base")


@dataclass(frozen=True)
class Loss:
    """Loss of a batch.

    Attributes:
        total: sum over the batch's examples, each with its weight (with gradient).
        sums: what else was measured, by name, summed alike; the training reports each divided by the examples' weight.
        records: what a validation keeps of each example, as plain values; called in validations only.
    """

    total: torch.Tensor
    sums: Mapping[str, torch.Tensor] = field(default_factory=dict)
    records: Callable[[], Sequence[Any]] = tuple


@dataclass(frozen=True)
class Predictions:
    """What a model says at a batch's targets, row by row as the rows were given, before logits are made of it.

    Attributes:
        hidden: what the output head is applied to. Shape (targets, size).
        head: the head's weight, shape (vocabulary, size); None where ``hidden`` are the logits.
        row_of_target: which row each target is of, rising. Shape (targets,).
    """

    hidden: torch.Tensor
    head: torch.Tensor | None
    row_of_target: torch.Tensor

    @property
    def vocabulary(self) -> int:
        """Tokens that there are logits of."""
        return (self.hidden if self.head is None else self.head).shape[1 if self.head is None else 0]

    def logits(self, start: int, stop: int) -> torch.Tensor:
        """Logits of some of the targets. Shape (stop - start, vocabulary), float32."""
        piece = self.hidden[start:stop]
        return (piece if self.head is None else functional.linear(piece, self.head)).float()


#: Loss of a batch, as its computation's ``collate`` made it, under a model.
Objective = Callable[[nn.Module, Any], Loss]
#: Log-probability of each target of a batch. Shape (targets,).
TokenLogProbs = Callable[[nn.Module, Batch], torch.Tensor]
#: What a model says at the targets of a batch.
Predict = Callable[[nn.Module, Batch], Predictions]
#: Name of the share of targets that were the likeliest token.
ACCURACY = "token_accuracy"


class _SlicedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies. Shapes: hidden (targets, size), weight (vocabulary, size), targets and their own weights (targets,)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        total = hidden.new_zeros((), dtype=torch.float32)
        correct = torch.zeros((), dtype=torch.long if weights is None else torch.float32, device=hidden.device)
        for start, stop in _slices(len(targets), weight.shape[0]):
            piece, wanted = hidden[start:stop], targets[start:stop].unsqueeze(1)
            logits = functional.linear(piece, weight).float()
            scale = None if weights is None else weights[start:stop].unsqueeze(1)
            correct += _weighted(logits.argmax(dim=1, keepdim=True) == wanted, scale).sum()
            normalizer = logits.logsumexp(dim=1, keepdim=True)
            total += _weighted(normalizer - logits.gather(1, wanted), scale).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            gradient = logits.sub_(normalizer).exp_()
            gradient.scatter_add_(1, wanted, torch.full_like(gradient[:, :1], -1.0))
            gradient = _weighted(gradient, scale).to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(gradient, weight, out=grad_hidden[start:stop])
            if grad_weight is not None:
                grad_weight.addmm_(gradient.t(), piece)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * scale.to(grad_weight.dtype),
            None,
            None,
        )


class _SlicedLogProbs(torch.autograd.Function):
    """Log-probability of each target; logits are computed again for the gradient. Shapes as of ``_SlicedCrossEntropy``."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        pieces = []
        for start, stop in _slices(len(targets), weight.shape[0]):
            logits = functional.linear(hidden[start:stop], weight).float()
            pieces.append(logits.gather(1, targets[start:stop].unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=1))
        return torch.cat(pieces) if pieces else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        hidden, weight, targets = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        for start, stop in _slices(len(targets), weight.shape[0]):
            logits = functional.linear(hidden[start:stop], weight).float()
            gradient = logits.softmax(dim=1).neg_()
            gradient.scatter_add_(1, targets[start:stop].unsqueeze(1), torch.ones_like(gradient[:, :1]))
            gradient = (gradient * grads[0][start:stop].unsqueeze(1)).to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(gradient, weight, out=grad_hidden[start:stop])
            if grad_weight is not None:
                grad_weight.addmm_(gradient.t(), hidden[start:stop])
        return grad_hidden, grad_weight, None


def by_slices(values: Callable[[int, int], torch.Tensor], count: int, vocabulary: int) -> torch.Tensor:
    """A value of each target by functions of slices of logits, which are made again for the gradient instead of being kept.

    Args:
        values: of the targets from a begin to an end. Shape (end - begin,).
        count: targets.
        vocabulary: logits of a target.
    """
    return torch.cat([checkpoint(values, *ends, use_reentrant=False) for ends in _slices(count, vocabulary)])


def _weighted(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return values if weights is None else values * weights


def _slices(count: int, vocabulary: int) -> Iterator[tuple[int, int]]:
    """Begins and ends of slices whose logits take ``_SLICE_BYTES``."""
    rows = max(1, _SLICE_BYTES // (4 * vocabulary))
    return ((start, min(start + rows, count)) for start in range(0, count, rows))


class LossHead:
    """Takes the place of a model's output head during ``__call__`` and computes the loss there instead of logits."""

    def __init__(self, head: nn.Linear) -> None:
        self._head = head

    @staticmethod
    def of(model: Any) -> LossHead | None:
        """A loss head for the model; None if its logits are not simply a linear map of the last hidden state."""
        head = model.get_output_embeddings()
        config = model.config.get_text_config()
        if type(head) is not nn.Linear or head.bias is not None:
            return None
        if any(getattr(config, key, None) not in (None, 0, 1, 1.0) for key in _SCALED_LOGITS):
            return None
        return LossHead(head) if keeps_chosen_logits(model) else None

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """The objective: loss of a batch made by ``collate_rows``."""
        right: list[torch.Tensor] = []

        def forward(input: torch.Tensor) -> torch.Tensor:
            weight = self._head.weight
            outputs: Any = _SlicedCrossEntropy.apply(
                input.reshape(-1, input.shape[-1]).to(weight.dtype), weight, batch.targets, batch.weights
            )
            right.append(outputs[1])
            return outputs[0].reshape(1, 1, 1).clone()

        return Loss(self._run(model, batch, forward).sum(), {ACCURACY: right[0]})

    def log_probs(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Log-probability of each target of a batch made by ``collate_rows``. Shape (targets,)."""

        def forward(input: torch.Tensor) -> torch.Tensor:
            weight = self._head.weight
            hidden = input.reshape(-1, input.shape[-1]).to(weight.dtype)
            outputs: Any = _SlicedLogProbs.apply(hidden, weight, batch.targets)
            return outputs.reshape(1, -1, 1).clone()

        return self._run(model, batch, forward).reshape(-1)

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """Predictions at the targets of a batch made by ``collate_rows``."""
        found: list[torch.Tensor] = []

        def forward(input: torch.Tensor) -> torch.Tensor:
            found.append(input.reshape(-1, input.shape[-1]).to(self._head.weight.dtype))
            return input

        self._run(model, batch, forward)
        return _row_by_row(found[0], self._head.weight, batch)

    def _run(self, model: nn.Module, batch: Batch, forward: Any) -> torch.Tensor:
        """What the model gives out in place of logits: a backward pass must begin there, where sharding listens for it."""
        self._head.forward = forward
        try:
            return model(**batch.inputs, logits_to_keep=batch.positions).logits
        finally:
            del self._head.forward


def plain_loss(model: nn.Module, batch: Batch) -> Loss:
    """The objective for any causal model: all logits, then cross-entropy at the targets."""
    return _loss_of(_chosen_logits(model, batch), batch)


def plain_predictions(model: nn.Module, batch: Batch) -> Predictions:
    """Predictions at a batch's targets, for any causal model."""
    return _row_by_row(_chosen_logits(model, batch), None, batch)


def _row_by_row(hidden: torch.Tensor, head: torch.Tensor | None, batch: Batch) -> Predictions:
    """Batches of two models may have their rows in different orders; predictions have them in one."""
    row_of, order = torch.sort(batch.row_of_target, stable=True)
    return Predictions(hidden[order], head, row_of)


def plain_log_probs(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Log-probability of each target, for any causal model. Shape (targets,)."""
    return _log_probs_of(_chosen_logits(model, batch), batch)


def single_loss(model: nn.Module, batch: Batch) -> Loss:
    """``plain_loss`` of a padded batch, each of its rows computed alone: for models whose numbers padding changes."""
    return _loss_of(_single_logits(model, batch), batch)


def single_log_probs(model: nn.Module, batch: Batch) -> torch.Tensor:
    """``plain_log_probs`` of a padded batch, each of its rows computed alone. Shape (targets,)."""
    return _log_probs_of(_single_logits(model, batch), batch)


def single_predictions(model: nn.Module, batch: Batch) -> Predictions:
    """``plain_predictions`` of a padded batch, each of its rows computed alone."""
    return _row_by_row(_single_logits(model, batch), None, batch)


def _loss_of(chosen: torch.Tensor, batch: Batch) -> Loss:
    total = _weighted(functional.cross_entropy(chosen, batch.targets, reduction="none"), batch.weights).sum()
    correct = chosen.detach().argmax(dim=1) == batch.targets
    return Loss(total, {ACCURACY: _weighted(correct, batch.weights).sum()})


def _log_probs_of(chosen: torch.Tensor, batch: Batch) -> torch.Tensor:
    return chosen.gather(1, batch.targets.unsqueeze(1)).squeeze(1) - chosen.logsumexp(dim=1)


def _chosen_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits at the batch's positions. Shape (targets, vocabulary)."""
    logits = model(**batch.inputs).logits
    return logits.reshape(-1, logits.shape[-1])[batch.positions].float()


def _single_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The same, row by row without their padding."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    width, found = ids.shape[1], []
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        mine = batch.positions[(batch.positions >= row * width) & (batch.positions < (row + 1) * width)]
        inputs = {"input_ids": ids[row : row + 1, :length], "attention_mask": mask[row : row + 1, :length]}
        found.append(model(**inputs, use_cache=False).logits[0, mine - row * width].float())
    return torch.cat(found)


def keeps_chosen_logits(model: Any) -> bool:
    """Whether the model's forward takes ``logits_to_keep`` and so computes no other logits."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters
