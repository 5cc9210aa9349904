"""What all tuners of peft share: an adapter beside the frozen base, saved as a peft directory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_inputs.base_models.families import Family, family_of
from martlet_inputs.base_models.model_files import files_in
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from martlet_trainer.training.heads import PEFT_TASKS, head_modules, write_head
from martlet_trainer.tuners.base import Companion, TunerInputs
from martlet_trainer.tuners.continued import load_adapter, require_head

#: Modules of heads that peft trains and saves by itself.
_PEFTS_OWN = ("classifier", "score")
WEIGHTS_FILE = "adapter_model.safetensors"


class PeftTuner(ABC):
    """Trains what peft puts beside the frozen base; the result is a peft directory."""

    artifact_kind = "adapter"

    def __init__(self, inputs: TunerInputs) -> None:
        """Raises InvalidArgument if a target module doesn't exist, FailedPrecondition if the adapter to go on from doesn't fit."""
        self.companion: Companion = Companion()
        self._head = inputs.head
        self.model: Any = self._with_adapter(self._load_base(inputs), inputs)
        self._name = inputs.base_name
        self._config: Any = self.model.peft_config[self.model.active_adapter]
        if inputs.checkpoint is not None:
            self.load_weights(inputs.checkpoint)

    @abstractmethod
    def _load_base(self, inputs: TunerInputs) -> Any:
        """The frozen base model."""

    @abstractmethod
    def _adapter_config(self, inputs: TunerInputs) -> PeftConfig:
        """Config of a new adapter, but for what the model's head asks for."""

    def _with_adapter(self, base: Any, inputs: TunerInputs) -> Any:
        if inputs.adapter is not None:
            require_head(inputs.adapter, inputs.head)
            return load_adapter(base, inputs.adapter, inputs.config.tuner.lora_dropout)
        config: Any = self._adapter_config(inputs)
        config.task_type = PEFT_TASKS[inputs.head.task]
        if new := head_modules(base, inputs.head.task):
            own = [name for name in new if name not in _PEFTS_OWN]
            config.modules_to_save = [*(config.modules_to_save or ()), *own] or None
            if config.target_modules == "all-linear":  # peft would adapt some heads beside training them
                config.target_modules = _linear_outside(base, new)
        if family_of_model(inputs).input_gradients:
            base.enable_input_require_grads()
        try:
            return get_peft_model(base, config)
        except ValueError as error:
            raise _cannot_be_adapted(base, inputs, error) from error

    def save_weights(self, directory: Path) -> None:
        """Write a peft directory: adapter_config.json and the weights as they are, and what the model ends in."""
        directory.mkdir(parents=True, exist_ok=True)
        weights = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        save_file(_apart(self._to_write(weights)), directory / WEIGHTS_FILE, {"format": "pt"})
        written = replace(self._config_to_write(), base_model_name_or_path=self._name, inference_mode=True)
        written.save_pretrained(str(directory))
        write_head(self._head, self.model.get_base_model(), directory)

    def _to_write(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """An adapter's weights as they are written."""
        return weights

    def _config_to_write(self) -> Any:
        """The config of what is written."""
        return self._config

    def _as_trained(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights that were written, as the model has them; the inverse of ``_to_write``."""
        return weights

    def load_weights(self, directory: Path) -> None:
        """Read the weights of a peft directory.

        Raises:
            FailedPrecondition: they belong to another adapter.
        """
        try:
            found = set_peft_model_state_dict(self.model, self._as_trained(load_file(directory / WEIGHTS_FILE)))
        except (OSError, RuntimeError) as error:
            raise FailedPrecondition(
                f"the adapter's weights don't fit this job: {error}", reason="BAD_CHECKPOINT"
            ) from error
        own = set(get_peft_model_state_dict(self.model, save_embedding_layers=False))
        missing = [name for name in found.missing_keys if name.replace(f".{self.model.active_adapter}", "") in own]
        if found.unexpected_keys or missing:
            names = ", ".join([*found.unexpected_keys, *missing][:3])
            raise FailedPrecondition(f"the adapter's weights don't fit this job: {names}", reason="BAD_CHECKPOINT")

    def save_result(self, directory: Path) -> None:
        """The same as ``save_weights``: a plain peft directory needs nothing else."""
        self.save_weights(directory)

    def metadata(self) -> dict[str, Any]:
        """Base model and targets, for whoever serves the adapter or merges it."""
        targets, experts = self._config.target_modules, getattr(self._config, "target_parameters", None)
        return {
            "base_model": self._name,
            **({"target_regex": targets} if isinstance(targets, str) else {"target_modules": sorted(targets or ())}),
            "modules_to_save": sorted(self._config.modules_to_save or ()),
            # Experts whose weights are one tensor (peft adapts them by default); not every engine takes such adapters.
            **({"target_parameters": sorted(experts)} if experts else {}),
        }


def _cannot_be_adapted(base: Any, inputs: TunerInputs, error: ValueError) -> InvalidArgument:
    """peft's words, at the field that they are about: its options, or the modules, of which those that there are are named."""
    if inputs.config.tuner.options and "target" not in str(error).lower():
        return InvalidArgument.field("spec.tuner.options", f"don't fit this model: {error}")
    linear = sorted(
        {name.rsplit(".", 1)[-1] for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    )
    description = f"can't be adapted: {error} Linear modules of this model: {', '.join(linear)}"
    field = "target_modules" if inputs.config.tuner.target_regex is None else "target_regex"
    return InvalidArgument.field(f"spec.tuner.{field}", description)


def _linear_outside(base: Any, modules: list[str]) -> set[str]:
    """Names of the linear modules of a model that are in none of the modules."""
    outside = tuple(f"{name}." for name in modules)
    return {
        name
        for name, module in base.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and not f"{name}.".startswith(outside)
    }


def _apart(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights without memory in common, which safetensors refuses: some kinds share matrices among layers."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        plain = tensor.detach().cpu().contiguous()
        found[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    return found


def places(inputs: TunerInputs) -> dict[str, Any]:
    """``target_modules``, and what stays out of them, as peft wants them: what the config says, or all linear layers but for those
    that the model's family is known to need as they are (``martlet_inputs.base_models.families``).
    """
    tuner = inputs.config.tuner
    if tuner.target_regex is not None:
        return {"target_modules": tuner.target_regex}
    if tuner.target_modules != ("all-linear",):
        return {"target_modules": list(tuner.target_modules)}
    family = family_of_model(inputs)
    found: dict[str, Any] = {"target_modules": list(family.targets) or "all-linear"}
    return {**found, "exclude_modules": "|".join(family.keep_out)} if family.keep_out else found


def family_of_model(inputs: TunerInputs) -> Family:
    """What is known of the base model's family."""
    return family_of(str(files_in(inputs.base_model).config.get("model_type", "")))
