"""Reads AutoAWQ's files: dequantized by code of our own, and by AutoAWQ's loader."""

# Its libraries are in the environment of its family only.
# pyright: reportMissingImports=false
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from martlet_quantizer.loading import device

#: Where each of the eight 4-bit numbers of a 32-bit word lies (in steps of 4 bits), in AutoAWQ's GEMM layout.
_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def load_dequantized(directory: Path, dtype: torch.dtype) -> Any:
    """The model with plain weights, worked out from the packed ones without AutoAWQ: a fault of its loader can't hide a
    fault of its quantizer.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    group_size = int(config["quantization_config"]["group_size"])
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors.update(load_file(path))
    plain = _dequantize_all(tensors, group_size, dtype)
    from transformers import AutoConfig, AutoModelForCausalLM

    settings: Any = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    del settings.quantization_config
    model: Any = AutoModelForCausalLM.from_config(settings, torch_dtype=dtype, trust_remote_code=False)
    missing, unexpected = model.load_state_dict(plain, strict=False)
    model.tie_weights()
    tied = {"lm_head.weight"} if settings.tie_word_embeddings else set()
    if unexpected or set(missing) - tied:
        raise ValueError(f"tensors don't fit the model: missing {missing}, not known {unexpected}")
    return model.eval()


def _dequantize_all(
    tensors: Mapping[str, torch.Tensor], group_size: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    plain = {}
    for name, tensor in tensors.items():
        if name.endswith(".qweight"):
            layer = name.removesuffix(".qweight")
            weight = dequantize(tensor, tensors[f"{layer}.qzeros"], tensors[f"{layer}.scales"], group_size)
            plain[f"{layer}.weight"] = weight.to(dtype)
        elif not name.endswith((".qzeros", ".scales")):
            plain[name] = tensor.to(dtype)
    return plain


def dequantize(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, group_size: int) -> torch.Tensor:
    """A layer's weight, (out_features, in_features), in float32.

    Args:
        qweight: (in_features, out_features / 8), int32.
        qzeros: (in_features / group_size, out_features / 8), int32.
        scales: (in_features / group_size, out_features).
        group_size: rows that share zero point and scale.
    """
    zeros = _unpack(qzeros).repeat_interleave(group_size, 0)
    wide = scales.float().repeat_interleave(group_size, 0)
    return ((_unpack(qweight) - zeros).float() * wide).T.contiguous()


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    shifts = torch.tensor([4 * place for place in _ORDER])
    return ((packed[..., None] >> shifts) & 15).flatten(1)


def load_by_autoawq(directory: Path) -> Any:
    """By AutoAWQ's own loader; on a CPU with its slow plain kernel, as the fast one needs IPEX."""
    import awq.models.base
    from awq import AutoAWQForCausalLM

    if device().type == "cpu":
        awq.models.base.get_best_device = lambda: "naive"
    model: Any = AutoAWQForCausalLM.from_quantized(str(directory), fuse_layers=False, trust_remote_code=False)
    return model.model.eval()
