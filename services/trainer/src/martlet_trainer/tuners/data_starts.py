"""Starts of LoRA that are made of a training's first batches: EVA (arXiv 2410.07170) and LoRA-GA (arXiv 2407.05000), or of the rounding of a
quantized base: LoftQ (arXiv 2310.08659).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from martlet_core.errors import InvalidArgument
from peft import LoraGAConfig
from peft.utils.incremental_pca import IncrementalPCA
from safetensors import safe_open

from martlet_trainer.tuners.base import Companion, FirstBatch, TunerInputs
from martlet_trainer.tuners.lora import LoraTuner
from martlet_trainer.tuners.shifted_lora import ShiftedLoraTuner, Start, layers, starts

_FIELD = "spec.tuner.init_weights"


class EvaTuner(LoraTuner):
    """A is made of the directions in which a layer's inputs differ most; B is zero, so the training starts as the base model."""

    def __init__(self, inputs: TunerInputs) -> None:
        super().__init__(inputs)
        self.companion: Companion = _Eva(self.model)


class LoraGaTuner(ShiftedLoraTuner):
    """A and B are made of the base weights' gradient, and taken out of the base model, so that the training starts as that."""

    def __init__(self, inputs: TunerInputs) -> None:
        super().__init__(inputs)
        self.companion: Companion = _LoraGa(self)


class LoftqTuner(ShiftedLoraTuner):
    """A and B make up for what quantizing rounded away. What is written is for the unquantized base model, as of the other shifted starts."""

    def _make_starts(self, inputs: TunerInputs) -> None:
        make_up_for_rounding(self.model, self.model.active_adapter, inputs.base_model)
        super()._make_starts(inputs)

    def _find_starts(self, found: dict[str, Start]) -> None:
        self.starts = found  # the base model is rounded as before: nothing is taken out of it


class _Eva(Companion):
    """Finds principal components of each layer's inputs."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._real: torch.Tensor | None = None

    @torch.no_grad()
    def meet_data(self, batches: Iterable[FirstBatch]) -> None:
        """See ``Companion``."""
        adapter = self._model.active_adapter
        found: dict[str, IncrementalPCA] = {}
        with ExitStack() as hooks:
            for name, layer in layers(self._model):
                rank = layer.r[adapter]
                found[name] = IncrementalPCA(n_components=rank, copy=True, lowrank=True, lowrank_seed=42)
                hooks.callback(layer.register_forward_pre_hook(self._hook(found[name], rank)).remove)
            for batch in batches:
                self._real = batch.real
                batch.loss()
        for name, layer in layers(self._model):
            if not hasattr(found[name], "components_"):
                rank = layer.r[adapter]
                description = f"is eva, which needs more than {rank} tokens in a batch for rank {rank}; use larger batches, or a lower rank"
                raise InvalidArgument.field(_FIELD, description)
            weight = layer.lora_A[adapter].weight
            weight.data = found[name].components_.to(weight)

    def _hook(self, components: IncrementalPCA, rank: int) -> Any:
        def see(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            states = inputs[0] if self._real is None else inputs[0][self._real]
            states = states.reshape(-1, states.shape[-1]).float()
            if len(states) > rank:
                components.partial_fit(states)

        return see


class _LoraGa(Companion):
    """Sums the gradients of the adapted layers' own weights, and has peft make the start of them."""

    def __init__(self, tuner: LoraGaTuner) -> None:
        self._tuner = tuner

    def meet_data(self, batches: Iterable[FirstBatch]) -> None:
        """See ``Companion``."""
        model = self._tuner.model
        adapter = model.active_adapter
        weights = {name: layer.get_base_layer().weight for name, layer in layers(model)}
        for weight in weights.values():
            weight.requires_grad_(True)
        with model.disable_adapter():
            count = sum(self._learn(batch) for batch in batches)
        for name, layer in layers(model):
            weight = weights[name]
            weight.requires_grad_(False)
            layer.get_base_layer()._peft_loraga_grad = weight.grad / count
            weight.grad = None
            with torch.no_grad():
                layer.lora_ga_init(adapter, LoraGAConfig())
        self._tuner.starts = starts(model, adapter)

    @staticmethod
    def _learn(batch: FirstBatch) -> int:
        batch.loss().backward()
        return 1


@torch.no_grad()
def make_up_for_rounding(model: Any, adapter: str, base_model: Path) -> None:
    """Set each layer's factors to the best approximation of their rank to what 4 bits rounded away (LoftQ with one iteration).

    peft's ``replace_lora_weights_loftq`` does the same for a scale of 1; here ``scale B A`` is what makes up for it.

    Raises:
        InvalidArgument: the files hold no weights by these names.
    """
    places = {name: path for path in sorted(base_model.glob("*.safetensors")) for name in _names(path)}
    for name, layer in layers(model):
        base = layer.get_base_layer()
        own = f"{name.removeprefix('base_model.model.')}.weight"
        if own not in places:
            raise InvalidArgument.field(_FIELD, f"is loftq, but the model's files have no {own}; use default")
        with safe_open(places[own], framework="pt") as file:
            wanted = file.get_tensor(own).float().to(base.weight.device)
        rest = (wanted - dequantize_4bit(base.weight.data, base.weight.quant_state).float()) / layer.scaling[adapter]
        left, values, right = torch.linalg.svd(rest, full_matrices=False)
        rank = layer.r[adapter]
        root = values[:rank].sqrt()
        layer.lora_A[adapter].weight.data = (root[:, None] * right[:rank]).contiguous()
        layer.lora_B[adapter].weight.data = (left[:, :rank] * root).contiguous()


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())
