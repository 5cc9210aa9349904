"""LoRA (arXiv 2106.09685) by peft, on a base in full precision or one that bitsandbytes quantizes (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_inputs.base_models.model_files import files_in
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.other import prepare_model_for_kbit_training
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig

from martlet_trainer.config import TunerConfig
from martlet_trainer.training.models import load_model
from martlet_trainer.tuners.base import TunerInputs
from martlet_trainer.tuners.continued import load_adapter

WEIGHTS_FILE = "adapter_model.safetensors"


class LoraTuner:
    """Trains low-rank matrices beside the frozen base; the result is a peft directory."""

    artifact_kind = "adapter"

    def __init__(self, inputs: TunerInputs) -> None:
        """Raises InvalidArgument if a target module doesn't exist, FailedPrecondition if the adapter to go on from doesn't fit."""
        tuner, stored = inputs.config.tuner, files_in(inputs.base_model).quantization
        quantizes = tuner.kind == "qlora" and stored is None
        quantization = _quantization(tuner, inputs.placement.dtype) if quantizes else None
        base = load_model(inputs.base_model, inputs.placement.dtype, inputs.placement.device, quantization)
        if quantizes or stored is not None:
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        self.model: Any = _with_adapter(base, inputs)
        self._name = inputs.base_name
        self._config: LoraConfig = self.model.peft_config[self.model.active_adapter]
        if inputs.checkpoint is not None:
            self.load_weights(inputs.checkpoint)

    def save_weights(self, directory: Path) -> None:
        """Write a peft directory: adapter_config.json and the weights as they are."""
        directory.mkdir(parents=True, exist_ok=True)
        weights = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
            directory / WEIGHTS_FILE,
            {"format": "pt"},
        )
        before = self._config.base_model_name_or_path, self._config.inference_mode
        self._config.base_model_name_or_path, self._config.inference_mode = self._name, True
        self._config.save_pretrained(str(directory))
        self._config.base_model_name_or_path, self._config.inference_mode = before

    def load_weights(self, directory: Path) -> None:
        """Read the weights of a peft directory.

        Raises:
            FailedPrecondition: they belong to another adapter.
        """
        try:
            found = set_peft_model_state_dict(self.model, load_file(directory / WEIGHTS_FILE))
        except (OSError, RuntimeError) as error:
            raise FailedPrecondition(
                f"the adapter's weights don't fit this job: {error}", reason="BAD_CHECKPOINT"
            ) from error
        missing = [name for name in found.missing_keys if "lora_" in name or "modules_to_save" in name]
        if found.unexpected_keys or missing:
            names = ", ".join([*found.unexpected_keys, *missing][:3])
            raise FailedPrecondition(f"the adapter's weights don't fit this job: {names}", reason="BAD_CHECKPOINT")

    def save_result(self, directory: Path) -> None:
        """The same as ``save_weights``: a plain peft directory needs nothing else."""
        self.save_weights(directory)

    def metadata(self) -> dict[str, Any]:
        """Base model, rank, scale and targets, for whoever serves the adapter."""
        targets, experts = self._config.target_modules, self._config.target_parameters
        return {
            "base_model": self._name,
            "tuner": "lora",
            "lora_rank": self._config.r,
            "lora_alpha": self._config.lora_alpha,
            "target_modules": sorted(targets) if isinstance(targets, (set, list, tuple)) else [str(targets)],
            "modules_to_save": sorted(self._config.modules_to_save or ()),
            "use_dora": bool(self._config.use_dora),
            "use_rslora": bool(self._config.use_rslora),
            # Experts whose weights are one tensor (peft adapts them by default); not every engine takes such adapters.
            **({"target_parameters": sorted(experts)} if experts else {}),
        }


def _with_adapter(base: Any, inputs: TunerInputs) -> Any:
    if inputs.adapter is not None:
        return load_adapter(base, inputs.adapter, inputs.config.tuner.lora_dropout)
    tuner = inputs.config.tuner
    alpha = tuner.lora_alpha if tuner.lora_alpha is not None else 2.0 * tuner.lora_rank
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=tuner.lora_rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # type: ignore[arg-type]  fractions work; peft's annotation is too narrow
        lora_dropout=tuner.lora_dropout,
        target_modules="all-linear" if tuner.target_modules == ("all-linear",) else list(tuner.target_modules),
        modules_to_save=list(tuner.modules_to_save) or None,
        use_rslora=tuner.use_rslora,
        use_dora=tuner.use_dora,
    )
    try:
        return get_peft_model(base, config)
    except ValueError as error:
        linear = sorted(
            {name.rsplit(".", 1)[-1] for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
        )
        description = f"can't be adapted: {error} Linear modules of this model: {', '.join(linear)}"
        raise InvalidArgument.field("spec.tuner.target_modules", description) from error


def _quantization(tuner: TunerConfig, dtype: torch.dtype) -> BitsAndBytesConfig:
    if tuner.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
