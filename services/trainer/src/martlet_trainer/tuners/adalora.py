"""AdaLoRA (arXiv 2303.10512): ranks are taken from layers that need them less while training goes on. The layers and the allocation are peft's."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from martlet_core.errors import InvalidArgument
from peft import AdaLoraConfig
from safetensors.torch import load_file, save_file

from martlet_trainer.tuners.base import Companion, TunerInputs
from martlet_trainer.tuners.other_adapters import OtherAdapter
from martlet_trainer.tuners.peft_tuner import WEIGHTS_FILE

_PREFIX = "base_model.model."
_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaloraTuner(OtherAdapter):
    """Trains ``B E A`` of each layer. Checkpoints hold every triplet, since one that was masked may come back; the result holds what is left."""

    def __init__(self, inputs: TunerInputs) -> None:
        super().__init__(inputs)
        self.companion: Companion = _Allocation(self.model.base_model, self._config)

    def _adapter_config(self, inputs: TunerInputs) -> AdaLoraConfig:
        # The number of steps is known only when the data is read: ``_Allocation.begin`` has it.
        self._options |= {"total_step": 1 + self._options["tinit"] + self._options["tfinal"]}
        return super()._adapter_config(inputs)  # pyright: ignore[reportReturnType]  # peft's config by name

    def _config_to_write(self) -> AdaLoraConfig:
        return replace(self._config, rank_pattern=None)

    def save_weights(self, directory: Path) -> None:
        """See ``Tuner``."""
        with _without_pattern(self._config):
            super().save_weights(directory)

    def load_weights(self, directory: Path) -> None:
        """See ``Tuner``."""
        with _without_pattern(self._config):
            super().load_weights(directory)

    def save_result(self, directory: Path) -> None:
        """A peft directory without the masked triplets, which peft reads by its ``rank_pattern``."""
        self.save_weights(directory)
        weights, pattern = trimmed(load_file(directory / WEIGHTS_FILE))
        save_file(weights, directory / WEIGHTS_FILE, {"format": "pt"})
        written = replace(self._config, rank_pattern=pattern, base_model_name_or_path=self._name, inference_mode=True)
        written.save_pretrained(str(directory))

    def metadata(self) -> dict[str, Any]:
        """Base model, kind, options and ranks."""
        ranks = {
            name.removeprefix(_PREFIX).removesuffix(f".lora_E.{self.model.active_adapter}"): int((e != 0).sum())
            for name, e in self.model.named_parameters()
            if ".lora_E." in name
        }
        return {**super().metadata(), "ranks": ranks}


class _Allocation(Companion):
    """Allocates ranks after each step, and keeps factors near to orthogonal."""

    def __init__(self, model: Any, config: AdaLoraConfig) -> None:
        self._model = model
        self._config = config

    def begin(self, total_steps: int, optimizer: torch.optim.Optimizer) -> None:
        """See ``Companion``."""
        if self._config.tinit + self._config.tfinal >= total_steps:
            description = (
                f"leaves none of the {total_steps} steps for ranks to fall in: tinit is {self._config.tinit}, tfinal"
                f" {self._config.tfinal}; lower them, or train longer"
            )
            raise InvalidArgument.field("spec.tuner.options", description)
        self._config.total_step = total_steps

    def restore(self, state: Mapping[str, Any]) -> None:
        """See ``Companion``."""
        device = next(self._model.parameters()).device
        for name in _SCORES:
            values = {key: value.to(device) for key, value in state[name].items()}
            setattr(self._model.rankallocator, name, values)
        self._config.rank_pattern = state["rank_pattern"]

    def penalty(self) -> torch.Tensor | None:
        """The paper's equation 7, as peft's ``AdaLoraModel.forward`` has it: mean distance of each factor's Gram matrix from the identity."""
        weight = self._config.orth_reg_weight
        if not weight:
            return None
        distances = []
        for name, factor in self._model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                gram = factor @ factor.T if ".lora_A." in name else factor.T @ factor
                distances.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
        return weight * torch.stack(distances).mean()

    def after_step(self, step: int) -> None:
        """See ``Companion``."""
        self._model.update_and_allocate(step + 1)  # peft counts the steps that are done

    def state(self) -> Mapping[str, Any]:
        """Importances of all weights, and the triplets that are masked."""
        scores = {name: getattr(self._model.rankallocator, name) for name in _SCORES}
        return {**scores, "rank_pattern": self._config.rank_pattern}


@contextmanager
def _without_pattern(config: AdaLoraConfig) -> Any:
    """peft drops masked triplets wherever the config has a pattern; here every one is written and read."""
    pattern, config.rank_pattern = config.rank_pattern, None
    try:
        yield
    finally:
        config.rank_pattern = pattern


def trimmed(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, list[bool]]]:
    """An adapter's weights without the triplets whose value is zero, and which were kept, by layer as peft names them."""
    found, pattern = dict(weights), dict[str, list[bool]]()
    for name in [name for name in weights if name.endswith(".lora_E")]:
        layer = name.removesuffix(".lora_E")
        kept = (weights[name] != 0).flatten()
        found[name] = weights[name][kept]
        found[f"{layer}.lora_A"] = weights[f"{layer}.lora_A"][kept]
        found[f"{layer}.lora_B"] = weights[f"{layer}.lora_B"][:, kept].contiguous()
        pattern[name.removeprefix(_PREFIX)] = kept.tolist()
    return found, pattern
