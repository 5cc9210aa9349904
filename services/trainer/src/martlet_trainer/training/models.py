"""Loads base models for training and says how batches for them are made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from martlet_core.errors import FailedPrecondition, InvalidArgument
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from martlet_trainer.data.encode import EncodedRow
from martlet_trainer.training.attention import IMPLEMENTATION
from martlet_trainer.training.batches import Collate, collate_padded, collate_rows
from martlet_trainer.training.loss import LossHead, Objective, plain_loss

#: Rows, tokens a row and tokens in common with which the computation without padding is checked.
_CHECK_ROWS, _CHECK_TOKENS, _CHECK_PREFIX = 3, 64, 8
#: Relative difference of the loss that rounding explains.
_CHECK_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Computation:
    """How batches are made and what their loss is; ``isolates_rows`` tells whether rows may share a sequence."""

    collate: Collate
    objective: Objective
    isolates_rows: bool


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of an ordinary Hugging Face directory; code that comes with it is never run.

    Raises:
        InvalidArgument: the directory has none that works.
    """
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument.field("spec.base_model", f"its tokenizer can't be loaded: {error}") from error


def load_model(directory: Path, dtype: torch.dtype, device: torch.device, quantization: Any = None) -> Any:
    """The causal language model of an ordinary Hugging Face directory.

    Args:
        directory: config and safetensors weights; pickled weights and code are refused.
        dtype: type of the weights in memory.
        device: where they go.
        quantization: a transformers quantization config; None leaves the weights as they are stored.

    Raises:
        InvalidArgument: the directory holds no causal language model that can be loaded.
    """
    stored = stored_quantization(directory)
    if stored not in ("", "bitsandbytes"):
        description = (
            f"is quantized by {stored}, which can't be trained; use the model it was made from, or a bitsandbytes one"
        )
        raise InvalidArgument.field("spec.base_model", description)
    kwargs: dict[str, Any] = {"quantization_config": quantization} if quantization is not None and not stored else {}
    if kwargs or stored:
        kwargs["device_map"] = {"": str(device)}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, trust_remote_code=False, local_files_only=True, use_safetensors=True, **kwargs
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument.field(
            "spec.base_model", f"can't be loaded as a causal language model: {error}"
        ) from error
    return model if kwargs or stored else nn.Module.to(model, device)


def stored_quantization(directory: Path) -> str:
    """The method that the weights were quantized with before; empty for none."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return str((config.get("quantization_config") or {}).get("quant_method", ""))


def context_length(directory: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """Longest input in tokens, by the model's config, else by the tokenizer.

    Raises:
        InvalidArgument: the directory's config is not one that transformers knows.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument.field("spec.base_model", f"its config can't be loaded: {error}") from error
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length)


def choose_computation(
    model: Any, rows: Sequence[EncodedRow], device: torch.device, packing: bool, dropout: bool
) -> Computation:
    """The computation without padding if it gives this model the same loss as its own, else the padded one.

    Whether a model's attention can be replaced is not read off a list of architectures: both ways are tried on a few rows.

    Raises:
        FailedPrecondition: packing is asked for, but the model's attention can't keep packed rows apart.
    """
    before = model.config._attn_implementation
    head = LossHead.of(model)
    if head is not None and _same_loss(model, head, _check_rows(rows), device):
        return Computation(partial(collate_rows, share_prefix=not dropout), head, isolates_rows=True)
    model.set_attn_implementation(before)
    if packing:
        raise FailedPrecondition(
            "this model's attention can't keep packed rows apart; set data.packing to false",
            reason="PACKING_UNSUPPORTED",
        )
    return Computation(collate_padded, plain_loss, isolates_rows=False)


def _check_rows(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """A few short rows with a common beginning, every token behind it a target, so that the check looks everywhere."""
    beginning = rows[0].input_ids[:_CHECK_PREFIX]
    checked = []
    for row in rows[:_CHECK_ROWS]:
        ids = np.concatenate([beginning, row.input_ids[-_CHECK_TOKENS:]])
        checked.append(EncodedRow(ids, np.arange(len(ids)) > len(beginning)))
    return checked


def _same_loss(model: Any, head: LossHead, rows: Sequence[EncodedRow], device: torch.device) -> bool:
    model.eval()
    with torch.no_grad():
        padded = collate_padded(rows, device)
        wanted = plain_loss(model, padded).total.item() / len(padded.targets)
        try:
            model.set_attn_implementation(IMPLEMENTATION)
            batch = collate_rows(rows, device)
            found = head(model, batch).total.item() / len(batch.targets)
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError):
            return False  # the architecture doesn't hand the layout to its attention
    tolerance = _CHECK_TOLERANCE.get(next(model.parameters()).dtype, 5e-2)
    return abs(found - wanted) <= tolerance * max(1.0, abs(wanted))
