"""Batches of encoded rows as tensors: without padding where the model's attention allows it, padded where it doesn't."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from martlet_trainer.data.encode import EncodedRow
from martlet_trainer.training.attention import RowLayout


@dataclass(frozen=True)
class Batch:
    """Rows ready for a forward pass.

    Attributes:
        inputs: keyword arguments of the model's forward.
        positions: where in the flattened (batch x length) outputs the targets are predicted. Shape (targets,).
        targets: token ids to predict there. Shape (targets,).
        row_of_target: which row each target is of, counted as the rows were given. Shape (targets,).
        lengths: tokens of the row that each input token is of; a prefix counts as part of the shortest row. Shape as ``input_ids``.
        weights: of the targets' losses; None where all weigh 1. Shape (targets,), float32.
        row_count: rows in the batch.
        token_count: tokens of the rows, each counted once, padding left out.
    """

    inputs: dict[str, Any]
    positions: torch.Tensor
    targets: torch.Tensor
    row_of_target: torch.Tensor
    lengths: torch.Tensor
    weights: torch.Tensor | None
    row_count: int
    token_count: int


#: Makes a batch of rows on a device.
Collate = Callable[[Sequence[EncodedRow], torch.device], Batch]


def collate_rows(rows: Sequence[EncodedRow], device: torch.device, share_prefix: bool = True) -> Batch:
    """Rows end to end, for ``attention.IMPLEMENTATION``.

    The last token of each row is left out of the input: nothing is predicted from it. A prefix that all rows share (a system message, say)
    is computed once and seen by all of them, which is the same computation done fewer times; dropout inside the model would make it a
    different one, hence ``share_prefix``.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    rows = [rows[index] for index in order]
    shared = _shared_prefix(rows) if share_prefix and len(rows) > 1 else 0
    lengths = [len(row.input_ids) - 1 - shared for row in rows]
    ids = np.concatenate([rows[0].input_ids[:shared], *(row.input_ids[shared:-1] for row in rows)])
    places = np.concatenate([np.arange(shared), *(np.arange(shared, shared + length) for length in lengths)])
    positions, targets, start = [], [], shared
    for row, length in zip(rows, lengths, strict=True):
        predicted = np.flatnonzero(row.is_target[1:])  # place in the row that predicts the token behind it
        positions.append(predicted - shared + start)
        targets.append(row.input_ids[predicted + 1])
        start += length
    inputs = {
        "input_ids": _tensor(ids, device).unsqueeze(0),
        "position_ids": _tensor(places, device).unsqueeze(0),
        "layout": RowLayout.of(lengths, shared, device),
        "use_cache": False,
    }
    whole = [length + shared for length in lengths]
    by_token = np.concatenate(
        [np.full(shared, whole[0]), *(np.full(n, w) for n, w in zip(lengths, whole, strict=True))]
    )
    return _batch(inputs, positions, targets, by_token[None], rows, order, device)


def collate_padded(rows: Sequence[EncodedRow], device: torch.device, virtual_tokens: int = 0) -> Batch:
    """Rows side by side, padded on the right, for models whose attention can't be replaced.

    Args:
        rows: the batch.
        device: where to.
        virtual_tokens: outputs that the model puts in front of each row's.
    """
    longest = max(len(row.input_ids) for row in rows) - 1
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    by_token = np.ones((len(rows), longest), dtype=np.int64)
    positions, targets = [], []
    for index, row in enumerate(rows):
        length = len(row.input_ids) - 1
        by_token[index] = length
        ids[index, :length] = row.input_ids[:-1]
        mask[index, :length] = 1
        predicted = np.flatnonzero(row.is_target[1:])
        positions.append(predicted + index * (virtual_tokens + longest) + virtual_tokens)
        targets.append(row.input_ids[predicted + 1])
    inputs = {"input_ids": _tensor(ids, device), "attention_mask": _tensor(mask, device), "use_cache": False}
    return _batch(inputs, positions, targets, by_token, rows, range(len(rows)), device)


def _batch(
    inputs: dict[str, Any],
    positions: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    lengths: np.ndarray,
    rows: Sequence[EncodedRow],
    order: Sequence[int],
    device: torch.device,
) -> Batch:
    return Batch(
        inputs=inputs,
        positions=_tensor(np.concatenate(positions), device),
        targets=_tensor(np.concatenate(targets), device),
        row_of_target=_tensor(np.repeat(np.asarray(order), [len(part) for part in targets]), device),
        lengths=_tensor(lengths, device),
        weights=_weights(rows, device),
        row_count=len(rows),
        token_count=sum(len(row.input_ids) for row in rows),
    )


def _weights(rows: Sequence[EncodedRow], device: torch.device) -> torch.Tensor | None:
    """Weights of all targets, in the rows' order; None where every one is 1."""
    if all(row.weights is None for row in rows):
        return None
    parts = [
        np.ones(row.target_count, np.float32) if row.weights is None else row.weights[1:][row.is_target[1:]]
        for row in rows
    ]
    return torch.from_numpy(np.concatenate(parts)).to(device, non_blocking=True)


def _shared_prefix(rows: Sequence[EncodedRow]) -> int:
    """Tokens that all rows begin with, so that no target is predicted inside and each row keeps at least one input token."""
    first = rows[0].input_ids
    length = min(min(len(row.input_ids) - 2, int(np.argmax(row.is_target[1:]))) for row in rows)
    for row in rows[1:]:
        same = first[:length] == row.input_ids[:length]
        length = length if same.all() else int(np.argmin(same))
    return max(length, 0)


def _tensor(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device, non_blocking=True)
