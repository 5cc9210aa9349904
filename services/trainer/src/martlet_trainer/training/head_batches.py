"""Batches and computations of models that end in a head: texts side by side, padded on the right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn

from martlet_trainer.data.encode import EncodedInput
from martlet_trainer.data.head_examples import HeadExample
from martlet_trainer.training.computation import Computation
from martlet_trainer.training.loss import Loss


@dataclass(frozen=True)
class HeadBatch:
    """Examples ready for a forward pass.

    Attributes:
        inputs: keyword arguments of the model's forward: the texts of all examples, one after another. Shapes (texts, length).
        lengths: tokens of the text that each token is of. Shape (texts, length).
        examples: what the texts are of.
        row_count: examples.
        token_count: tokens of all texts, padding left out.
    """

    inputs: dict[str, torch.Tensor]
    lengths: torch.Tensor
    examples: Sequence[HeadExample]
    row_count: int
    token_count: int

    def places(self) -> Iterator[slice]:
        """Where the texts of each example are."""
        ends = list(accumulate(len(example.inputs) for example in self.examples))
        return (slice(end - len(example.inputs), end) for end, example in zip(ends, self.examples, strict=True))


#: Loss of a batch, given what the model makes of its texts.
HeadObjective = Callable[[Any, HeadBatch], Loss]
#: Numbers of a validation, given the records of all its examples.
Score = Callable[[Sequence[Any]], Mapping[str, float]]


def collate_inputs(inputs: Sequence[EncodedInput], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Texts side by side. Shapes (texts, length)."""
    longest = max(part.token_count for part in inputs)
    shape = (len(inputs), longest)
    ids, mask = np.full(shape, pad, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    types = np.zeros(shape, dtype=np.int64)
    for index, part in enumerate(inputs):
        ids[index, : part.token_count] = part.input_ids
        mask[index, : part.token_count] = 1
        if part.type_ids is not None:
            types[index, : part.token_count] = part.type_ids
    arrays = {"input_ids": ids, "attention_mask": mask}
    if inputs[0].type_ids is not None:
        arrays["token_type_ids"] = types
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}


def head_computation(
    objective: HeadObjective, pad: int, measures: Sequence[str], score: Score | None = None
) -> Computation:
    """A computation on examples whose texts are read as a whole.

    Args:
        objective: of a batch.
        pad: token to pad with.
        measures: names of what it measures beside the loss.
        score: what is measured over a whole validation.
    """

    def collate(examples: Sequence[HeadExample], device: torch.device) -> HeadBatch:
        texts = [part for example in examples for part in example.inputs]
        inputs = collate_inputs(texts, pad, device)
        lengths = inputs["attention_mask"].sum(dim=1, keepdim=True).expand_as(inputs["input_ids"])
        return HeadBatch(inputs, lengths, examples, len(examples), sum(example.token_count for example in examples))

    def compute(model: nn.Module, batch: HeadBatch) -> Loss:
        return objective(model(**batch.inputs), batch)

    return Computation(collate, compute, measures=tuple(measures), score=score)


def pooled(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """A text's embedding of length 1, as sentence-transformers computes it.

    Args:
        hidden: last hidden states. Shape (texts, length, size).
        mask: 1 for tokens, 0 for padding on the right. Shape (texts, length).
        pooling: ``mean``, ``last`` or ``cls``.

    Returns:
        Shape (texts, size), in 32 bit.
    """
    hidden = hidden.float()
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        found = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    else:
        place = torch.zeros_like(mask[:, 0]) if pooling == "cls" else mask.sum(dim=1) - 1
        found = hidden[torch.arange(len(hidden), device=hidden.device), place]
    return nn.functional.normalize(found, dim=1)
