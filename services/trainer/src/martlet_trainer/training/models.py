"""Loads base models and their tokenizers from ordinary Hugging Face directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from martlet_core.errors import InvalidArgument
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase


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
    """The causal language model of an ordinary Hugging Face directory.

    Args:
        directory: config and safetensors weights; pickled weights and code are refused.
        dtype: type of the weights in memory.
        device: where they go.
        quantization: a transformers quantization config; None leaves the weights as they are stored.

    Raises:
        InvalidArgument: the directory holds no causal language model that can be loaded.
    """
    stored = stored_quantization(directory)
    if stored not in ("", "bitsandbytes"):
        description = (
            f"is quantized by {stored}, which can't be trained; use the model it was made from, or a bitsandbytes one"
        )
        raise InvalidArgument.field("spec.base_model", description)
    kwargs: dict[str, Any] = {"quantization_config": quantization} if quantization is not None and not stored else {}
    if kwargs or stored:
        kwargs["device_map"] = {"": str(device)}
    try:
        if _caps_scores(directory):
            kwargs["attn_implementation"] = "eager"
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, trust_remote_code=False, local_files_only=True, use_safetensors=True, **kwargs
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument.field(
            "spec.base_model", f"can't be loaded as a causal language model: {error}"
        ) from error
    return model if "device_map" in kwargs else nn.Module.to(model, device)


def _caps_scores(directory: Path) -> bool:
    """Whether the model caps its attention scores (Gemma 2), which transformers' default attention leaves out without a word."""
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    return bool(getattr(config.get_text_config(), "attn_logit_softcapping", None))


def stored_quantization(directory: Path) -> str:
    """The method that the weights were quantized with before; empty for none."""
    return str(_quantization_config(directory).get("quant_method", ""))


def stored_bits(directory: Path) -> str:
    """How bitsandbytes quantized the weights before: ``int8``, ``nf4``, ``fp4``; empty if it didn't."""
    config = _quantization_config(directory)
    if config.get("load_in_8bit"):
        return "int8"
    return str(config.get("bnb_4bit_quant_type", "fp4")) if config.get("load_in_4bit") else ""


def _quantization_config(directory: Path) -> dict[str, Any]:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return config.get("quantization_config") or {}


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
