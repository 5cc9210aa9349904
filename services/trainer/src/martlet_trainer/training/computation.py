"""Chooses how a model's batches are made: without padding where that gives the model's own numbers, padded where it doesn't.

Whether a model's attention can be replaced is not read off a list of architectures. What the attention can't do (capped scores, sinks,
position biases) it refuses when a model asks for it; everything else is found by trying both ways on a few rows, the longest one among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from martlet_core.errors import FailedPrecondition
from peft import PeftType
from torch import nn
from torch.nn import functional

from martlet_trainer.data.encode import EncodedRow
from martlet_trainer.training.attention import IMPLEMENTATION
from martlet_trainer.training.batches import Batch, Collate, collate_padded, collate_rows
from martlet_trainer.training.loss import (
    ACCURACY,
    LossHead,
    Objective,
    Predict,
    TokenLogProbs,
    keeps_chosen_logits,
    plain_log_probs,
    plain_loss,
    plain_predictions,
    single_log_probs,
    single_loss,
    single_predictions,
)

#: Tokens of the short row, and tokens in common with the long one, with which the computation without padding is checked.
_CHECK_TOKENS, _CHECK_PREFIX = 64, 8
#: Difference of the logits, as a share of their spread, that rounding explains where the same row is computed in another way.
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 2e-2}
#: The same where nothing but a neighbour changes, or logits become a loss: next to nothing is left to rounding.
_EXACT = 5e-3
#: Where nothing changes but what a causal model must take no notice of, 32 bit leaves this much to rounding.
_UNNOTICED = {**_ROUNDING, torch.float32: 1e-4}
#: In 8 bit a row's numbers depend on the batch, also with padding: this many times that difference is let pass.
_NOISE_FACTOR = 3.0
#: Why batches of models with virtual tokens are padded.
_VIRTUAL = "virtual tokens stand in front of each row"
#: Loss, log-probabilities and predictions of any causal model, by all of its logits.
_PLAIN = (plain_loss, plain_log_probs, plain_predictions)
#: The same, each row computed alone.
_SINGLE = (single_loss, single_log_probs, single_predictions)
#: What a model raises whose architecture doesn't fit the replaced attention.
_MISFITS = (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError, AssertionError)


class Begin(Protocol):
    """Called in all processes alike, with the steps done so far."""

    def __call__(self, step: int, *, validating: bool) -> None: ...


def do_nothing(step: int, *, validating: bool) -> None:
    """The ``Begin`` of a computation that needs none."""


@dataclass(frozen=True)
class Computation:
    """How batches are made and what their loss is.

    Attributes:
        collate: makes a batch.
        objective: loss of a batch.
        log_probs: log-probabilities of a batch's targets.
        predict: what stands behind them: the whole distribution at each target.
        isolates_rows: rows may share a sequence.
        why_padded: why batches are padded; empty where they aren't.
        measures: names of what the objective measures beside the loss.
        begin: called before a step's batches, and those of a validation, are made.
        score: numbers of a validation, given the records of all its examples (``Loss.records``); None where sums say it all.
    """

    collate: Callable[[Sequence[Any], torch.device], Any]
    objective: Objective
    log_probs: TokenLogProbs = plain_log_probs
    predict: Predict = plain_predictions
    isolates_rows: bool = False
    why_padded: str = ""
    measures: Sequence[str] = (ACCURACY,)
    score: Callable[[Sequence[Any]], Mapping[str, float]] | None = None
    begin: Begin = do_nothing


def choose_computation(
    model: Any, rows: Sequence[EncodedRow], device: torch.device, packing: bool, *, noisy: bool = False
) -> Computation:
    """The computation without padding if it gives this model's own numbers, else the padded one.

    Args:
        model: as it will be trained; its attention is switched over.
        rows: training rows; a few of them are tried.
        device: where the model is.
        packing: whether rows must be able to share a sequence.
        noisy: whether something random is done to each row's tokens, so that a common beginning must not be computed once.

    Raises:
        FailedPrecondition: packing is asked for, but the model's attention can't keep packed rows apart; or the model sees tokens that it is to
            predict.
    """
    if (virtual := _virtual_tokens(model)) is not None:
        collate = partial(collate_padded, virtual_tokens=virtual)
        return Computation(collate, *_PLAIN, isolates_rows=False, why_padded=_VIRTUAL)
    before = model.config._attn_implementation
    collate = partial(collate_rows, share_prefix=not (noisy or has_dropout(model)))
    model.eval()
    try:
        head = _head_without_padding(model, rows, device, collate)
        if head is None:
            return Computation(collate, *_PLAIN, isolates_rows=True)
        return Computation(collate, head, head.log_probs, head.predict, isolates_rows=True)
    except _MISFITS as error:
        reason = str(error) or type(error).__name__
    model.set_attn_implementation(before)
    if packing:
        raise FailedPrecondition(
            f"this model's attention can't keep packed rows apart ({reason}); set data.packing to false",
            reason="PACKING_UNSUPPORTED",
        )
    _require_causal(model, rows[0], device)
    if _padding_changes(model, rows, device):
        reason += "; each row is computed alone, since padding changes this model's numbers"
        return Computation(collate_padded, *_SINGLE, isolates_rows=False, why_padded=reason)
    return Computation(collate_padded, *_PLAIN, isolates_rows=False, why_padded=reason)


def _virtual_tokens(model: Any) -> int | None:
    """Outputs in front of each row's, of models with virtual tokens: none where those are keys and values only. None for other models."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return None
    return 0 if config.peft_type == PeftType.PREFIX_TUNING else config.num_virtual_tokens


def has_dropout(model: Any) -> bool:
    """Whether training drops anything at random: in the model's own layers, in its attention, or in front of an adapter."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    config = model.config.get_text_config().to_dict()
    rates = (value for name, value in config.items() if "dropout" in name or "pdrop" in name)
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


@torch.no_grad()
def _head_without_padding(
    model: Any, rows: Sequence[EncodedRow], device: torch.device, collate: Collate
) -> LossHead | None:
    """Switches the model's attention over and returns the head that goes with it; None where logits must be the model's own.

    Raises:
        ValueError: the numbers aren't the model's own. Models whose architecture doesn't fit raise what they like.
    """
    checked = _check_rows(rows)
    wanted = [_logits(model, collate_padded([row], device)) for row in checked]
    noise = _noise(model, checked, wanted, device)
    model.set_attn_implementation(IMPLEMENTATION)
    if model.config.get_text_config()._attn_implementation != IMPLEMENTATION:
        raise ValueError("its attention can't be replaced")
    limits = _limits(model, noise)
    _require_same(_logits(model, collate(checked, device)), torch.cat(wanted), limits.rounding, "without padding")
    batch, logits = _require_isolation(model, checked[0], device, limits.neighbour)
    head = LossHead.of(model)
    if head is None:
        return None
    loss = functional.cross_entropy(logits, batch.targets, reduction="sum").item()
    return head if abs(head(model, batch).total.item() - loss) <= _EXACT * max(1.0, loss) else None


@torch.no_grad()
def _require_causal(model: Any, row: EncodedRow, device: torch.device) -> None:
    """What a model says of a token must not depend on those behind it: an encoder would learn to copy what it is to predict.

    Raises:
        FailedPrecondition: it does.
    """
    if _is_8_bit(model):
        return  # there, a row's numbers depend on its neighbours anyway
    ids = row.input_ids[:_CHECK_TOKENS]
    every = np.ones(len(ids), dtype=bool)
    other = ids.copy()
    other[-2] = ids[0] if ids[-2] != ids[0] else ids[1]  # the last token that the model is given
    plain, changed = (_logits(model, collate_padded([EncodedRow(each, every)], device))[:-1] for each in (ids, other))
    if len(plain) and _difference(changed, plain) > _unnoticed(model):
        raise FailedPrecondition(
            "this model's predictions depend on the tokens behind them, so that it would learn to copy; choose a causal model (of an encoder, "
            "is_decoder in its config)",
            reason="MODEL_NOT_CAUSAL",
        )


@dataclass(frozen=True)
class _Limits:
    """Differences that are let pass: between two ways to compute a row, and between two neighbours of it."""

    rounding: float
    neighbour: float


def _limits(model: Any, noise: float) -> _Limits:
    if noise:
        return _Limits(noise, noise)
    return _Limits(_ROUNDING.get(next(model.parameters()).dtype, max(_ROUNDING.values())), _EXACT)


def _noise(model: Any, checked: Sequence[EncodedRow], wanted: Sequence[torch.Tensor], device: torch.device) -> float:
    """How much a row's logits depend on the batch it is in, by the model's own computation: much in 8 bit, 0 for all others."""
    if not _is_8_bit(model):
        return 0.0
    return _NOISE_FACTOR * _difference(_logits(model, collate_padded(checked, device)), torch.cat(list(wanted)))


@torch.no_grad()
def _padding_changes(model: Any, rows: Sequence[EncodedRow], device: torch.device) -> bool:
    """Whether a row's numbers depend on the padding behind it: some models take no notice of the attention mask."""
    if _is_8_bit(model):
        return False
    checked = _check_rows(rows)
    alone = torch.cat([_logits(model, collate_padded([row], device)) for row in checked])
    together = _logits(model, collate_padded(checked, device))
    return _difference(together, alone) > _unnoticed(model)


def _unnoticed(model: Any) -> float:
    return _UNNOTICED.get(next(model.parameters()).dtype, max(_UNNOTICED.values()))


def _is_8_bit(model: Any) -> bool:
    return bool(getattr(getattr(model.config, "quantization_config", None), "load_in_8bit", False))


def _require_isolation(model: Any, row: EncodedRow, device: torch.device, limit: float) -> tuple[Batch, torch.Tensor]:
    """A row's logits must not depend on what the row before it says. Returns a batch of the row twice, and its logits."""
    stranger = EncodedRow(row.input_ids[::-1].copy(), row.is_target)
    twice, mixed = (collate_rows([before, row], device, share_prefix=False) for before in (row, stranger))
    logits, beside_stranger = _logits(model, twice), _logits(model, mixed)
    _require_same(beside_stranger[-row.target_count :], logits[-row.target_count :], limit, "beside another row")
    return twice, logits


def _check_rows(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """A short row and the longest one, with a common beginning. Nearly every token behind it is a target."""
    longest = max(rows, key=lambda row: len(row.input_ids)).input_ids
    beginning = rows[0].input_ids[:_CHECK_PREFIX]
    short = np.concatenate([beginning, rows[0].input_ids[-_CHECK_TOKENS:]])[: len(longest)]
    checked = []
    for ids in (short, np.concatenate([beginning, longest[len(beginning) :]])):
        first = min(max(len(beginning), len(ids) - _CHECK_TOKENS), len(ids) - 1)
        checked.append(EncodedRow(ids, np.arange(len(ids)) >= first))
    return checked


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    """Logits at the batch's positions. Shape (targets, vocabulary)."""
    if keeps_chosen_logits(model) and len(batch.inputs["input_ids"]) == 1:
        return model(**batch.inputs, logits_to_keep=batch.positions).logits[0].float()
    logits = model(**batch.inputs).logits
    return logits.reshape(-1, logits.shape[-1])[batch.positions].float()


def _require_same(found: torch.Tensor, wanted: torch.Tensor, limit: float, when: str) -> None:
    difference = _difference(found, wanted)
    if not difference <= limit:  # also refuses NaN
        raise ValueError(f"{when} its logits differ by {difference:.2g} of their spread")


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / (wanted - wanted.mean()).norm()).item()
