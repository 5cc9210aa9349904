"""Weights in FP8 with a scale a channel; activations are scaled by token while the model runs. Sees no texts."""

# Its libraries are in the environment of its family only.
# pyright: reportMissingImports=false
from __future__ import annotations

from llmcompressor.modifiers.quantization import QuantizationModifier

from martlet_quantizer.methods.base import Task, Written
from martlet_quantizer.methods.compressed import compress


def quantize(task: Task) -> Written:
    """Quantize, and save in compressed-tensors' format."""
    return compress(task, [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=list(task.left_alone))])
