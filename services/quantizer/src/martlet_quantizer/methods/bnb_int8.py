"""bitsandbytes LLM.int8(): weights in int8 by row, activations' outliers in 16 bit. Sees no texts."""

from __future__ import annotations

from transformers import BitsAndBytesConfig

from martlet_quantizer.loading import half_dtype
from martlet_quantizer.methods.base import Task, Written
from martlet_quantizer.methods.bnb_nf4 import save_quantized


def quantize(task: Task) -> Written:
    """Quantize while loading, and save."""
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(task.left_alone))
    return save_quantized(task, config, half_dtype(task.source), "Linear8bitLt")
