"""Weights and activations in int8: SmoothQuant moves what makes activations hard to quantize into the weights, GPTQ rounds those."""

# Its libraries are in the environment of its family only.
# pyright: reportMissingImports=false
from __future__ import annotations

from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

from martlet_quantizer.methods.base import Task, Written
from martlet_quantizer.methods.compressed import compress


def quantize(task: Task) -> Written:
    """Quantize, and save in compressed-tensors' format."""
    return compress(
        task,
        [
            SmoothQuantModifier(smoothing_strength=0.8),
            GPTQModifier(targets="Linear", scheme="W8A8", ignore=list(task.left_alone)),
        ],
    )
