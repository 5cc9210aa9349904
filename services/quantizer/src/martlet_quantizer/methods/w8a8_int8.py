"""Weights and activations in int8: SmoothQuant moves what makes activations hard to quantize into the weights, GPTQ rounds those."""

# Its libraries are in the environment of its family only.
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.modifiers.transform.smoothquant.utils import MAPPINGS_REGISTRY

from martlet_quantizer.methods.base import Task, Written
from martlet_quantizer.methods.compressed import compress
from martlet_quantizer.weights import read_config

#: Gemma 2 and 3 have a norm of its own before the MLP; what `post_attention_layernorm` scales goes to the residual stream, where
#: nothing takes the smoothing back. llm-compressor 0.14 smooths that one all the same.
_NORMS_AROUND = [
    [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"],
    [["re:.*gate_proj", "re:.*up_proj"], "re:.*pre_feedforward_layernorm"],
]
_OURS = {"Gemma2ForCausalLM": _NORMS_AROUND, "Gemma3ForCausalLM": _NORMS_AROUND}


def quantize(task: Task) -> Written:
    """Quantize, and save in compressed-tensors' format."""
    return compress(
        task, [*_smoothing(task), GPTQModifier(targets="Linear", scheme="W8A8", ignore=list(task.left_alone))]
    )


def _smoothing(task: Task) -> Sequence[Any]:
    """SmoothQuant where it is known which norm feeds which layers: elsewhere it may change what the model computes."""
    architecture = next(iter(read_config(task.source).get("architectures") or ()), "")
    if architecture in _OURS:
        return [SmoothQuantModifier(smoothing_strength=0.8, mappings=_OURS[architecture])]
    if architecture in MAPPINGS_REGISTRY:
        return [SmoothQuantModifier(smoothing_strength=0.8)]
    task.log(
        f"activations are not smoothed: llm-compressor knows no layers of {architecture or 'this model'} to smooth"
    )
    return []
