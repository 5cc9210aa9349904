"""LoRA (arXiv 2106.09685) by peft, on a base in full precision or one that bitsandbytes quantizes (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

from typing import Any

import torch
from martlet_inputs.base_models.model_files import files_in
from peft import LoraConfig
from peft.utils.other import prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig

from martlet_trainer.config import TunerConfig
from martlet_trainer.training.heads import UNQUANTIZED
from martlet_trainer.training.models import load_model
from martlet_trainer.tuners.base import TunerInputs
from martlet_trainer.tuners.peft_tuner import PeftTuner, places

#: Starts that peft makes by itself; all others begin as the default, and are made when there is something to make them of.
_BY_PEFT = ("gaussian", "orthogonal", "pissa", "olora")


class LoraTuner(PeftTuner):
    """Trains low-rank matrices."""

    def _load_base(self, inputs: TunerInputs) -> Any:
        tuner, stored = inputs.config.tuner, files_in(inputs.base_model).quantization
        quantizes = tuner.kind == "qlora" and stored is None
        quantization = _quantization(tuner, inputs.placement.dtype) if quantizes else None
        base = load_model(
            inputs.base_model, inputs.placement.dtype, inputs.placement.device, quantization, head=inputs.head
        )
        if quantizes or stored is not None:
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        return base

    def _adapter_config(self, inputs: TunerInputs) -> LoraConfig:
        tuner = inputs.config.tuner
        alpha = tuner.lora_alpha if tuner.lora_alpha is not None else 2.0 * tuner.lora_rank
        return LoraConfig(
            r=tuner.lora_rank,
            lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # type: ignore[arg-type]  fractions work; peft's annotation is too narrow
            lora_dropout=tuner.lora_dropout,
            **places(inputs),
            modules_to_save=list(tuner.modules_to_save) or None,
            use_rslora=tuner.use_rslora,
            use_dora=tuner.use_dora,
            init_lora_weights=self._start(inputs),  # pyright: ignore[reportArgumentType]  # peft lists its values one by one
        )

    def _start(self, inputs: TunerInputs) -> bool | str:
        """How peft sets the matrices at the start."""
        chosen = inputs.config.tuner.init_weights
        return chosen if chosen in _BY_PEFT else True

    def metadata(self) -> dict[str, Any]:
        """Base model, rank, scale and targets, for whoever serves the adapter."""
        written = self._config_to_write()
        return {
            **super().metadata(),
            "tuner": "lora",
            "lora_rank": written.r,
            "lora_alpha": written.lora_alpha,
            "use_dora": bool(written.use_dora),
            "use_rslora": bool(written.use_rslora),
        }


def _quantization(tuner: TunerConfig, dtype: torch.dtype) -> BitsAndBytesConfig:
    if tuner.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(UNQUANTIZED))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(UNQUANTIZED),  # its name notwithstanding, it counts for 4 bits too
    )
