"""GPTQ by llm-compressor: weights in 4 (or 8) bit groups, activations as they are."""

# Its libraries are in the environment of its family only.
# pyright: reportMissingImports=false
from __future__ import annotations

from llmcompressor.modifiers.gptq import GPTQModifier

from martlet_quantizer.methods.base import Task, Written
from martlet_quantizer.methods.compressed import compress

#: Share of the mean diagonal that is added to the Hessian. Few calibration texts make it nearly singular: with the
#: library's 0.01 and its min-max scales SmolLM2's perplexity rose by 55 %, with 0.1 and least-squares scales by 26 %.
_DAMPENING = 0.1


def quantize(task: Task) -> Written:
    """Quantize, and save in compressed-tensors' format."""
    weights = {
        "num_bits": task.bits,
        "type": "int",
        "symmetric": task.symmetric,
        "strategy": "group",
        "group_size": task.group_size,
        "observer": "mse",
    }
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return compress(
        task,
        [GPTQModifier(config_groups=groups, ignore=list(task.left_alone), dampening_frac=_DAMPENING)],
    )
