"""A longer context: positions are stretched, and LoRA on all linear layers learns to read them, with norms and embeddings trained beside it.

That is LongLoRA (arXiv 2309.12307) as it is done today: its shifted sparse attention saved memory that attention kernels no longer take, and
stretching positions is left to YaRN (arXiv 2309.00071). An adapter alone would be read with the base model's own positions, so the result is a whole
model, whose config has the new ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from martlet_core.errors import InvalidArgument
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from martlet_trainer.config import parse_tuner_options
from martlet_trainer.training.models import load_model, save_model
from martlet_trainer.tuners.base import TunerInputs
from martlet_trainer.tuners.options import LongloraOptions
from martlet_trainer.tuners.peft_tuner import PeftTuner, places

_OWN_FILE = "own_weights.safetensors"


class LongloraTuner(PeftTuner):
    """Trains LoRA, norms and embeddings of a model with stretched positions."""

    artifact_kind = "model"

    def __init__(self, inputs: TunerInputs) -> None:
        self._inputs = inputs
        options = parse_tuner_options(inputs.config.tuner)
        assert isinstance(options, LongloraOptions)
        self._options = options
        super().__init__(inputs)
        for weight in self._own_weights().values():
            weight.requires_grad_(True)

    def _load_base(self, inputs: TunerInputs) -> Any:
        config = stretched(AutoConfig.from_pretrained(inputs.base_model, local_files_only=True), self._options)
        return load_model(inputs.base_model, torch.float32, inputs.placement.device, config=config)

    def _adapter_config(self, inputs: TunerInputs) -> LoraConfig:
        options = self._options
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=options.r,
            lora_alpha=options.lora_alpha,  # type: ignore[arg-type]  fractions work; peft's annotation is too narrow
            **places(inputs),
        )

    def _own_weights(self) -> dict[str, torch.nn.Parameter]:
        """Norms and embeddings, by name."""
        embeddings = self.model.get_input_embeddings().weight
        return {
            name: weight
            for name, weight in self.model.named_parameters()
            if weight is embeddings or (weight.ndim == 1 and "norm" in name)
        }

    def save_weights(self, directory: Path) -> None:
        """See ``Tuner``."""
        super().save_weights(directory)
        save_file({name: weight.detach().cpu() for name, weight in self._own_weights().items()}, directory / _OWN_FILE)

    @torch.no_grad()
    def load_weights(self, directory: Path) -> None:
        """See ``Tuner``."""
        super().load_weights(directory)
        saved = load_file(directory / _OWN_FILE)
        for name, weight in self._own_weights().items():
            weight.copy_(saved[name])

    def save_result(self, directory: Path) -> None:
        """Write the merged model and its tokenizer, the weights in the base model's own type. The model in memory is changed by it."""
        config = json.loads((self._inputs.base_model / "config.json").read_text(encoding="utf-8"))
        stored = config.get("dtype") or config.get("torch_dtype") or "float32"
        merged = self.model.merge_and_unload().to(getattr(torch, str(stored), torch.float32))
        save_model(merged, directory, self._inputs.base_model)
        self._inputs.tokenizer.save_pretrained(directory)

    def metadata(self) -> dict[str, Any]:
        """Base model, for whoever asks where the weights came from, and how they were trained."""
        return {"base_model": self._name, "tuner": "longlora", "options": self._options.model_dump()}


def stretched(config: Any, options: LongloraOptions) -> Any:
    """The config with positions for a context that is ``factor`` times as long.

    Raises:
        InvalidArgument: the model has no rotary positions, or they are stretched already.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None)
    if not rope or "rope_theta" not in rope:
        raise InvalidArgument.field("spec.tuner.kind", "is longlora, which needs one set of rotary positions; use lora")
    if rope.get("rope_type", "default") != "default":
        text = f"is longlora, and the model's positions are stretched already ({rope['rope_type']}); use lora"
        raise InvalidArgument.field("spec.tuner.kind", text)
    context = text.max_position_embeddings
    text.rope_parameters = {**rope, "rope_type": options.rope_type, "factor": options.factor}
    if options.rope_type == "yarn":
        text.rope_parameters["original_max_position_embeddings"] = context
    text.max_position_embeddings = int(context * options.factor)
    return config
