"""Turns rows into windows of tokens: chat template applied, long texts chopped into several windows, none dropped."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from martlet_core.errors import InvalidArgument

from martlet_quantizer.config import MIN_CALIBRATION_ROWS
from martlet_quantizer.rows import Row


@dataclass(frozen=True)
class Calibration:
    """Texts to calibrate with.

    Attributes:
        windows: token ids, each window at most ``sequence_length`` long.
        read: rows in the set.
        used: rows that went in: all, or ``max_rows`` of them, drawn by the job's seed.
        chopped: used rows that are longer than a window and make several.
    """

    windows: Sequence[Sequence[int]]
    read: int
    used: int
    chopped: int


def choose(rows: Sequence[Row], max_rows: int, seed: int) -> list[Row]:
    """The rows to calibrate with, in their own order.

    Raises:
        InvalidArgument: there are too few.
    """
    if len(rows) < MIN_CALIBRATION_ROWS:
        raise InvalidArgument.field(
            "spec.calibration.dataset",
            f"has {len(rows)} rows; at least {MIN_CALIBRATION_ROWS} are needed. Bring more, or leave it out for the"
            " built-in texts",
            reason="TOO_FEW_CALIBRATION_ROWS",
        )
    if len(rows) <= max_rows:
        return list(rows)
    return [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), max_rows))]


def calibrate(tokenizer: Any, rows: Sequence[Row], *, max_rows: int, sequence_length: int, seed: int) -> Calibration:
    """Windows of the chosen rows.

    Raises:
        InvalidArgument: too few rows, or the tokenizer's chat template refuses one.
    """
    chosen = choose(rows, max_rows, seed)
    windows: list[list[int]] = []
    chopped = 0
    for index, row in enumerate(chosen):
        pieces = chop(encode(tokenizer, row, f"spec.calibration.dataset, used row {index + 1}"), sequence_length)
        chopped += len(pieces) > 1
        windows += pieces
    return Calibration(windows, len(rows), len(chosen), chopped)


def encode(tokenizer: Any, row: Row, where: str) -> list[int]:
    """Token ids of a row: of a conversation in the model's chat template, where it has one.

    Raises:
        InvalidArgument: the template refuses the conversation, or nothing is left of the row.
    """
    if "text" in row:
        ids = tokenizer(row["text"])["input_ids"]
    elif not tokenizer.chat_template:
        text = "\n".join(str(turn.get("content") or "") for turn in row["messages"])
        ids = tokenizer(text)["input_ids"]
    else:
        try:
            text = tokenizer.apply_chat_template(list(row["messages"]), tools=row.get("tools"), tokenize=False)
        except Exception as error:  # whatever a template raises is about the row
            raise InvalidArgument(f"{where}: the model's chat template refuses it: {error}") from error
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise InvalidArgument(f"{where} has no tokens")
    return list(ids)


def chop(ids: Sequence[int], length: int) -> list[list[int]]:
    """Pieces of at most ``length`` tokens that make up the whole."""
    return [list(ids[start : start + length]) for start in range(0, len(ids), length)]
