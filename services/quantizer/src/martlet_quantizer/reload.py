"""Loads what a method wrote, from disk, as the engines of its environment do. What is measured is what these return."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from martlet_quantizer.loading import device, load_model


def load_base(directory: Path, family: str, scratch: Path) -> Any:
    """The unquantized model, to compare with."""
    source = readable(directory, family, scratch)
    return load_model(source, _compute_dtype()).to(device())


def load_quantized(directory: Path, family: str) -> Any:
    """What a method of the family wrote."""
    return _LOADERS[family](directory)


def readable(directory: Path, family: str, scratch: Path) -> Path:
    """The unquantized model as the family's transformers can read it: itself, or a copy in ``scratch``."""
    if family != "awq":
        return directory
    from martlet_quantizer.transformers4 import readable_copy

    return readable_copy(directory, scratch)


def _compute_dtype() -> torch.dtype:
    return torch.bfloat16 if device().type == "cuda" else torch.float32


def _load_plain(directory: Path) -> Any:
    """transformers leaves the experts and routers of mixtures in the type that they were stored with, whatever it was asked for;
    the types of quantized weights and of their scales are left alone.
    """
    model = load_model(directory, _compute_dtype(), device_map={"": str(device())})
    for module in model.modules():
        if not hasattr(module, "weight_scale"):
            for parameter in module.parameters(recurse=False):
                if parameter.dtype in (torch.float16, torch.bfloat16, torch.float32):
                    parameter.data = parameter.data.to(_compute_dtype())
    return model


def _load_gguf(directory: Path) -> Any:
    from transformers import AutoConfig, GgufConfig

    from martlet_quantizer.methods.gguf import gguf_file, head_size

    file = gguf_file(directory)
    assert file is not None
    config = AutoConfig.from_pretrained(directory, gguf_file=file)
    # transformers 5.19 doesn't read it of dense models: it takes 128 for Qwen3, whatever the file says.
    config.head_dim = head_size(directory / file)
    return load_model(
        directory,
        _compute_dtype(),
        config=config,
        gguf_file=file,
        quantization_config=GgufConfig(dequantize=True),
        use_safetensors=None,
    ).to(device())


def _load_awq(directory: Path) -> Any:
    from martlet_quantizer.awq_format import load_dequantized

    return load_dequantized(directory, _compute_dtype()).to(device())


def _load_by_gptqmodel(directory: Path) -> Any:
    """By GPTQModel alone, which also reads mixtures, expert by expert."""
    from martlet_quantizer.gptq_environment import prepare

    prepare()
    from gptqmodel import GPTQModel  # pyright: ignore[reportMissingImports]

    return GPTQModel.load(str(directory), device=str(device()), dtype=_compute_dtype(), trust_remote_code=False).model


def load_gptq(directory: Path) -> Any:
    """By transformers with GPTQModel's kernels: GPTQ models but for mixtures, and AWQ models."""
    from martlet_quantizer.gptq_environment import prepare

    prepare()
    return _load_plain(directory)


_LOADERS: Mapping[str, Callable[[Path], Any]] = {
    "bnb": _load_plain,
    "llmcompressor": _load_plain,
    "gguf": _load_gguf,
    "awq": _load_awq,
    "gptqmodel": _load_by_gptqmodel,
}


def load_by(entrypoint: str, directory: Path) -> Any:
    """Load by an ``EngineCheck``'s function."""
    module, _, function = entrypoint.partition(":")
    return getattr(importlib.import_module(module), function)(directory)
