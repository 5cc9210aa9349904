"""Starts of LoRA that take a part out of the base model: PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775); more are in ``data_starts``.

Training goes on from ``W = (W - s B0 A0) + s B A`` with ``B A = B0 A0``. What is saved is a plain adapter of twice the rank for the untouched
base model, ``[B, -B0] [A; A0]``: any engine serves it, and a training finds both halves in it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from martlet_trainer.tuners.base import TunerInputs
from martlet_trainer.tuners.lora import LoraTuner

#: Factors of a layer at the start: A0 (rank, in), B0 (out, rank).
Start = tuple[torch.Tensor, torch.Tensor]


class ShiftedLoraTuner(LoraTuner):
    """Trains low-rank matrices that began as a part of the base model's weights."""

    def __init__(self, inputs: TunerInputs) -> None:
        self.starts: dict[str, Start] = {}
        super().__init__(inputs)
        if inputs.checkpoint is None:
            self._make_starts(inputs)

    def _start(self, inputs: TunerInputs) -> bool | str:
        # From a checkpoint the starts are read, not made again: that would cost time and might round otherwise.
        return True if inputs.checkpoint is not None else super()._start(inputs)

    def _make_starts(self, inputs: TunerInputs) -> None:
        """Keep the factors of a fresh start."""
        self.starts = starts(self.model, self.model.active_adapter)

    def _find_starts(self, found: dict[str, Start]) -> None:
        """Go on from the starts that a checkpoint has."""
        take_out(self.model, self.model.active_adapter, found)
        self.starts = found

    def _to_write(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return doubled(weights, self.starts)

    def _config_to_write(self) -> LoraConfig:
        config = self._config
        alpha = config.lora_alpha * (math.sqrt(2.0) if config.use_rslora else 2.0)  # the same scale with twice the rank
        return replace(config, r=2 * config.r, lora_alpha=alpha, init_lora_weights=True)

    def _as_trained(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        plain, found = halved(weights)
        if not self.starts:
            self._find_starts(found)
        return plain


def layers(model: Any) -> Iterator[tuple[str, Any]]:
    """LoRA's layers, by the name that their weights have in a peft file."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def starts(model: Any, adapter: str) -> dict[str, Start]:
    """Copies of each layer's factors, as they are now."""
    return {
        name: (layer.lora_A[adapter].weight.detach().clone(), layer.lora_B[adapter].weight.detach().clone())
        for name, layer in layers(model)
    }


def doubled(weights: dict[str, torch.Tensor], found: dict[str, Start]) -> dict[str, torch.Tensor]:
    """An adapter's weights as those of a plain one of twice the rank."""
    result = dict(weights)
    for name, (a0, b0) in found.items():
        a_name, b_name = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        result[a_name] = torch.cat([weights[a_name], a0.to(weights[a_name])])
        result[b_name] = torch.cat([weights[b_name], -b0.to(weights[b_name])], dim=1)
    return result


def halved(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Start]]:
    """The weights that ``doubled`` was given, and the starts."""
    plain, found = dict(weights), dict[str, Start]()
    for a_name in [name for name in weights if name.endswith(".lora_A.weight")]:
        name = a_name.removesuffix(".lora_A.weight")
        b_name = f"{name}.lora_B.weight"
        rank = len(weights[a_name]) // 2
        plain[a_name], a0 = (part.contiguous() for part in weights[a_name].split(rank))
        plain[b_name], minus_b0 = (part.contiguous() for part in weights[b_name].split(rank, dim=1))
        found[name] = (a0, -minus_b0)
    return plain, found


@torch.no_grad()
def take_out(model: Any, adapter: str, found: dict[str, Start]) -> None:
    """Take the starts out of the base model's weights, as peft does when it makes them."""
    for name, layer in layers(model):
        a0, b0 = found[name]
        weight = layer.get_base_layer().weight
        rest = weight.float() - layer.scaling[adapter] * b0.float().to(weight.device) @ a0.float().to(weight.device)
        weight.data = rest.to(weight.dtype)
