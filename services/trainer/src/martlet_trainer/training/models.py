"""Loads base models and their tokenizers from ordinary Hugging Face directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from martlet_core.errors import InvalidArgument
from martlet_core.loading_info import check_loading_info
from martlet_inputs.base_models.model_files import files_in
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.integrations.bitsandbytes import Bnb4bitDeserialize, Bnb8bitDeserialize

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of an ordinary Hugging Face directory; code that comes with it is never run.

    Raises:
        InvalidArgument: the directory has none that works.
    """
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument.field("spec.base_model", f"its tokenizer can't be loaded: {error}") from error


def load_model(directory: Path, dtype: torch.dtype, device: torch.device, quantization: Any = None) -> Any:
    """The causal language model of an ordinary Hugging Face directory, or of one that bitsandbytes quantized, which stays so.

    Args:
        directory: config and safetensors weights; pickled weights and code are refused.
        dtype: type of the weights in memory, and of the arithmetic on quantized ones.
        device: where they go.
        quantization: a transformers quantization config for ordinary weights; None leaves the weights as they are stored.

    Raises:
        InvalidArgument: the directory holds no causal language model that can be loaded.
        FailedPrecondition: its files lack weights.
    """
    kwargs: dict[str, Any] = {} if quantization is None else {"quantization_config": quantization}
    if kwargs or files_in(directory).quantization is not None:
        kwargs["device_map"] = {"": str(device)}
    try:
        if _caps_scores(directory):
            kwargs["attn_implementation"] = "eager"
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **kwargs,
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument.field(
            "spec.base_model", f"can't be loaded as a causal language model: {error}"
        ) from error
    model, info = loaded
    check_loading_info(info, "spec.base_model: its files")
    if "device_map" not in kwargs:
        return nn.Module.to(model, device)
    _compute_in(model, dtype)
    return model


def save_model(model: Any, directory: Path, base: Path) -> None:
    """Write a whole model that came from ``base`` so that ``load_model`` reads it: the text model of a model with other parts keeps that one's
    config, by which it was found.
    """
    model.save_pretrained(directory)
    if files_in(base).config.get("model_type") != model.config.model_type:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
        config.dtype = model.dtype
        config.save_pretrained(directory)


def _compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Make a quantized model compute in a type, whichever one it was stored with, and keep its quantized weights as they are.

    transformers leaves some ordinary weights (the experts and routers of mixtures) in the type that they were stored with.
    On a CPU with AVX-512 BF16, bitsandbytes 0.50 packs a layer's weights for inference the first time that it computes without
    gradients, as a check or a validation does. From then on the layer computes in bfloat16, and no gradient passes through it.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype, module.compute_type_is_set = dtype, True
            module.support_avx512bf16_for_cpu = False
    for parameter in model.parameters():
        if parameter.dtype in _FLOATS:
            parameter.data = parameter.data.to(dtype)


def dequantize(model: Any) -> Any:
    """A quantized model with ordinary weights in 32 bit, which give what the quantized ones give."""
    ordinary = model.dequantize(torch.float32)
    # transformers keeps how it read bitsandbytes' tensors, and fails to save ordinary ones by that.
    ordinary._weight_conversions = [
        conversion
        for conversion in ordinary._weight_conversions or ()
        if not any(
            isinstance(step, (Bnb4bitDeserialize, Bnb8bitDeserialize)) for step in getattr(conversion, "operations", ())
        )
    ]
    return ordinary


def _caps_scores(directory: Path) -> bool:
    """Whether the model caps its attention scores (Gemma 2), which transformers' default attention leaves out without a word."""
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    return bool(getattr(config.get_text_config(), "attn_logit_softcapping", None))


def context_length(directory: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """Longest input in tokens, by the model's config, else by the tokenizer.

    Raises:
        InvalidArgument: the directory's config is not one that transformers knows.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument.field("spec.base_model", f"its config can't be loaded: {error}") from error
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length)
