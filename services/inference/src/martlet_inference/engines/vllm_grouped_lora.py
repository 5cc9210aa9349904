"""LoRA inside vLLM on a CPU: two matrix products for each adapter in the batch.

vLLM 0.32 gathers an adapter's weights anew for every *token* of the batch (``vllm/lora/ops/torch_ops``), which copies
gigabytes a step, and takes the last slot's adapter for tokens that have none. Here the tokens of one adapter are taken
together, and tokens without one are left as they are. On a GPU vLLM has kernels of its own, and this isn't used.

Shapes: x (tokens, in), y (tokens, out), A (slots, 1, rank, in), B (slots, 1, out, rank).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.layers import base_linear, fused_moe
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


@dataclass(frozen=True)
class Group:
    """The rows of a batch that one adapter applies to.

    Attributes:
        slot: the adapter's place in the stacked weights.
        rows: indices of the rows; None for all of them.
        batch: rows of the whole batch.
    """

    slot: int
    rows: torch.Tensor | None
    batch: int

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """Its rows of a batch's tensor."""
        if x.shape[0] != self.batch:
            raise ValueError(f"a batch of {self.batch} rows came with a tensor of {x.shape[0]}")
        return x if self.rows is None else x[self.rows]


def group_by_slot(slots: torch.Tensor) -> tuple[Group, ...]:
    """Groups of a batch; rows whose slot is negative have no adapter and are in none."""
    used = [slot for slot in torch.unique(slots).tolist() if slot >= 0]
    if len(used) == 1 and bool((slots == used[0]).all()):
        return (Group(used[0], None, len(slots)),)
    return tuple(Group(slot, torch.nonzero(slots == slot).flatten(), len(slots)) for slot in used)


def place_on_the_cpu() -> None:
    """LoRA's matrices lie where everything is. vLLM looks where each layer's weight lies instead, and layers whose weight a
    kernel has packed away (int8, W8A8) have none any more: the engine didn't start.
    """
    for module in (base_linear, fused_moe):
        module._get_lora_device = lambda _layer: torch.device("cpu")  # pyright: ignore[reportAttributeAccessIssue]


class GroupedLora(PunicaWrapperCPU):
    """What a LoRA layer of vLLM calls; the weights and who has which adapter stay vLLM's own affair."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        place_on_the_cpu()
        self._token_groups: tuple[Group, ...] = ()
        self._sampler_groups: tuple[Group, ...] = ()

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Once a step: which token has which adapter."""
        super().update_metadata(*args, **kwargs)
        self._token_groups = group_by_slot(self.token_lora_indices)
        self._sampler_groups = group_by_slot(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add ``scale * x A^T B^T`` to each slice of ``y``, in place."""
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for group in self._token_groups:
            begin, part = 0, group.of(x)
            for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                low = part @ a[group.slot, 0].t()
                _add(y[:, begin : begin + size], low, b[group.slot, 0, :size], scale, group)
                begin += size

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        """Add ``x B^T`` to ``y``, in place; ``x`` holds the rows of A already."""
        if not add_inputs:
            y.zero_()
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for group in self._token_groups:
            b = lora_b_stacked[group.slot, 0]
            _add(y[:, : b.shape[0]], group.of(x), b, 1.0, group)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """Add ``scale * x A^T B^T`` to the logits, in place: one row a sequence, or the rows of one prompt, whose own tokens are scored."""
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for group in self._groups_of_logits(x.shape[0], lora_a_stacked):
            b = lora_b_stacked[group.slot, 0]
            width = min(b.shape[0], y.shape[1])  # the two may be padded differently
            _add(y[:, :width], group.of(x) @ lora_a_stacked[group.slot, 0].t(), b[:width], scale, group)

    def _groups_of_logits(self, rows: int, lora_a: torch.Tensor) -> tuple[Group, ...]:
        if all(group.batch == rows for group in self._sampler_groups):
            return self._sampler_groups
        # Some prompt's log-probabilities were asked for, and vLLM doesn't say whose. Next to no adapter has a part here.
        if not any(bool(lora_a[group.slot].any()) for group in self._token_groups):
            return ()
        if len(self._token_groups) == 1 and self._token_groups[0].rows is None:
            return (Group(self._token_groups[0].slot, None, rows),)
        raise ValueError(
            "log-probabilities of a prompt in a batch of several adapters, one of which changes the output layer"
        )


def _add(y: torch.Tensor, low: torch.Tensor, b: torch.Tensor, scale: float, group: Group) -> None:
    low, b = low.to(y.dtype), b.to(y.dtype)
    if group.rows is None:
        y.addmm_(low, b.t(), alpha=scale)
    else:
        y.index_add_(0, group.rows, low @ b.t(), alpha=scale)
