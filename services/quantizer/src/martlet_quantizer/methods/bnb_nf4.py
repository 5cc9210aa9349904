"""bitsandbytes NF4: weights in 4-bit normal floats, blocks of 64 with one scale each. Sees no texts."""

from __future__ import annotations

import torch
from transformers import BitsAndBytesConfig

from martlet_quantizer.loading import device, half_dtype, load_model
from martlet_quantizer.methods.base import Task, Written


def quantize(task: Task) -> Written:
    """Quantize while loading, and save."""
    dtype = half_dtype(task.source)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=task.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(task.left_alone),
    )
    return save_quantized(task, config, dtype, "Linear4bit")


def save_quantized(task: Task, config: BitsAndBytesConfig, dtype: torch.dtype, layer_class: str) -> Written:
    """Load with a bitsandbytes config, save, and say which layers became ``layer_class``."""
    model = load_model(task.source, dtype, quantization_config=config, device_map={"": str(device())})
    quantized = [name for name, module in model.named_modules() if type(module).__name__ == layer_class]
    model.save_pretrained(task.output)
    return Written(quantized)
