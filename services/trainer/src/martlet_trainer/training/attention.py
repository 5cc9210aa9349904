"""Attention for batches without padding: rows lie end to end in one sequence and never see one another.

A batch is ``(1, T)`` tokens: an optional prefix that all rows share, then the rows. Every linear layer thus works on real tokens only, a
shared prefix is computed once, and attention costs what the rows cost one by one, not ``T`` squared. Importing this module registers the
implementation with transformers under ``IMPLEMENTATION``; a model uses it after ``model.set_attn_implementation(IMPLEMENTATION)`` and needs
``layout`` in its forward call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

IMPLEMENTATION = "martlet_rows"

#: Rows up to this many tokens share a grid whatever their lengths; above it, a grid holds lengths within a factor of two.
_SMALL_ROW = 128
#: On a CPU, attention to at most this many tokens is computed as two plain products: torch's fused kernel took 1.3 to 1.5 times as long in
#: float32 and 4 to 8 times as long in bfloat16, forward and backward, with AMX. From 200 tokens on it is as fast.
_FEW_TOKENS = 160
#: What models hand to their attention that changes nothing here; anything else they set would change the numbers.
_HARMLESS = frozenset({"position_ids", "use_cache", "output_attentions", "output_router_logits", "deterministic"})


@dataclass(frozen=True)
class RowGrid:
    """Neighbouring rows that are attended to together, as a padded grid ``rows x longest``.

    Attributes:
        start: first token, counted behind the prefix.
        end: token behind the last one.
        row_count: rows in the grid.
        longest: tokens in the longest of them.
        slots: each token's place in the flattened grid. Shape (end - start,).
        mask: with a prefix, what each place of a row sees of prefix and row; shape (longest, prefix + longest). None without one.
    """

    start: int
    end: int
    row_count: int
    longest: int
    slots: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True)
class RowLayout:
    """Where the rows of a batch lie: the length of the shared prefix (0 for none) and the rows behind it, in grids."""

    prefix_length: int
    grids: tuple[RowGrid, ...]

    @staticmethod
    def of(lengths: Sequence[int], prefix_length: int, device: torch.device | str = "cpu") -> RowLayout:
        """The layout of rows of the given lengths (without the prefix, in order) behind a prefix. Rows sorted by length make fewer grids."""
        grids: list[RowGrid] = []
        first, start = 0, 0
        for index in range(1, len(lengths) + 1):
            if index < len(lengths) and _fits(lengths[first : index + 1]):
                continue
            grid = _grid(lengths[first:index], start, prefix_length, device)
            grids.append(grid)
            first, start = index, grid.end
        return RowLayout(prefix_length, tuple(grids))


def _fits(lengths: Sequence[int]) -> bool:
    return max(lengths) <= max(_SMALL_ROW, 2 * min(lengths))


def _grid(lengths: Sequence[int], start: int, prefix_length: int, device: torch.device | str) -> RowGrid:
    longest = max(lengths)
    slots = torch.cat([torch.arange(length) + row * longest for row, length in enumerate(lengths)])
    mask = None
    if prefix_length:
        mask = torch.ones(longest, prefix_length + longest, dtype=torch.bool).tril(diagonal=prefix_length).to(device)
    return RowGrid(start, start + sum(lengths), len(lengths), longest, slots.to(device), mask)


def rows_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: RowLayout | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row, and from each row to the shared prefix.

    Args:
        module: the attention layer; gives the number of query heads a key head serves.
        query: (1, heads, T, head size); key and value likewise with the key heads.
        attention_mask: not used; the layout says everything.
        dropout: share of attention weights to drop.
        scaling: factor on the scores; default 1 / sqrt(head size).
        layout: where the rows lie. Required.
        sliding_window: tokens that a token sees, itself included; None for all before it.
        is_causal: refused if False; the layer's own ``is_causal`` counts where this is None.
        others: refused if they could change the numbers (capped scores, attention sinks, position biases).

    Returns:
        (1, T, heads, head size), and no weights.

    Raises:
        ValueError: the model asks for something that this attention doesn't do.
    """
    if layout is None:
        raise ValueError(f"attention {IMPLEMENTATION!r} needs a layout in the model's forward call")
    _refuse_unknown(getattr(module, "is_causal", True) if is_causal is None else is_causal, others)
    attend = _Attend(getattr(module, "num_key_value_groups", 1), dropout, scaling)
    # (T, heads, size): tokens lead, so that a row is one piece of memory.
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    shared = layout.prefix_length
    prefix_query, prefix_key, prefix_value = (tensor[:shared].unsqueeze(0) for tensor in (query, key, value))
    pieces = []
    if shared:
        mask = _window_mask(shared, 0, sliding_window, query.device)
        pieces.append(attend(prefix_query, prefix_key, prefix_value, mask)[0])
    for grid in layout.grids:
        place = slice(shared + grid.start, shared + grid.end)
        wide_query, wide_key, wide_value = (_to_grid(tensor[place], grid) for tensor in (query, key, value))
        if shared:
            wide_key = torch.cat((prefix_key.expand(grid.row_count, -1, -1, -1), wide_key), dim=1)
            wide_value = torch.cat((prefix_value.expand(grid.row_count, -1, -1, -1), wide_value), dim=1)
        narrow = _window_mask(grid.longest, shared, sliding_window, query.device)
        wide = attend(wide_query, wide_key, wide_value, grid.mask if narrow is None else narrow)
        pieces.append(wide.reshape(grid.row_count * grid.longest, *wide.shape[2:]).index_select(0, grid.slots))
    out = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return out.unsqueeze(0), None


def _refuse_unknown(is_causal: bool, others: Mapping[str, Any]) -> None:
    names = [
        name for name, value in others.items() if name not in _HARMLESS and value is not None and value is not False
    ]
    if names or not is_causal:
        asked = ", ".join(sorted(names)) or "attention to later tokens"
        raise ValueError(f"attention {IMPLEMENTATION!r} doesn't do what the model asks for: {asked}")


def _window_mask(longest: int, prefix: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Which of the prefix and the row each token sees through a window. Shape (longest, prefix + longest); None where all fit into it."""
    return None if window is None or prefix + longest <= window else _banded_mask(longest, prefix, window, device)


@lru_cache(maxsize=8)  # every layer of a step asks for the same few
def _banded_mask(longest: int, prefix: int, window: int, device: torch.device) -> torch.Tensor:
    mask = torch.ones(longest, prefix + longest, dtype=torch.bool, device=device)
    return mask.tril_(diagonal=prefix).triu_(diagonal=prefix - window + 1)


@dataclass(frozen=True)
class _Attend:
    """Plain attention on (rows, tokens, heads, size); causal unless a mask says otherwise."""

    groups: int
    dropout: float
    scaling: float | None

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        if query.device.type == "cpu" and key.shape[1] <= _FEW_TOKENS and not self.dropout:
            return self._by_products(query, key, value, mask)
        if self.groups > 1:
            key, value = (tensor.repeat_interleave(self.groups, dim=2) for tensor in (key, value))
        out = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=self.dropout,
            scale=self.scaling,
        )
        return out.transpose(1, 2)

    def _by_products(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The same, by all scores at once; heads that share a key head are more rows of one product."""
        rows, asking, heads, size = query.shape
        seen, shared = key.shape[1], key.shape[2]
        scaling = size**-0.5 if self.scaling is None else self.scaling
        grouped = (query * scaling).view(rows, asking, shared, self.groups, size).permute(0, 2, 1, 3, 4)
        keys, values = (tensor.transpose(1, 2).reshape(rows * shared, seen, -1) for tensor in (key, value))
        hidden = _hidden(mask, asking, seen, query).repeat_interleave(self.groups, 0)
        asked = grouped.reshape(rows * shared, asking * self.groups, size)
        scores = torch.baddbmm(hidden.expand(rows * shared, -1, -1), asked, keys.transpose(1, 2))
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        out = torch.bmm(weights, values).view(rows, shared, asking, self.groups, -1)
        return out.permute(0, 2, 1, 3, 4).reshape(rows, asking, heads, -1)


def _hidden(mask: torch.Tensor | None, asking: int, seen: int, like: torch.Tensor) -> torch.Tensor:
    """What a mask, or causality where there is none, adds to scores. Shape (asking, seen)."""
    if mask is None:
        mask = torch.ones(asking, seen, dtype=torch.bool, device=like.device).tril()
    return like.new_zeros(asking, seen).masked_fill(~mask, -torch.inf)


def _to_grid(tensor: torch.Tensor, grid: RowGrid) -> torch.Tensor:
    wide = tensor.new_zeros(grid.row_count * grid.longest, *tensor.shape[1:])
    return wide.index_copy(0, grid.slots, tensor).view(grid.row_count, grid.longest, *tensor.shape[1:])


def _no_mask(*_: Any, **__: Any) -> None:
    """The layout isolates the rows; a mask of T x T would only cost memory."""
    return


AttentionInterface.register(IMPLEMENTATION, rows_attention)
AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)
