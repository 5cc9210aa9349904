"""Loads models for a method: the unquantized ones it starts from. Code that comes with a model is never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from martlet_core.gpu_memory import limit_memory
from martlet_core.loading_info import check_loading_info
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

_OLD_TRANSFORMERS = int(transformers.__version__.split(".")[0]) < 5


def device() -> torch.device:
    """The GPU where there is one, kept to what the job leased of it, else the CPU."""
    limit_memory(torch.cuda)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of an ordinary Hugging Face directory."""
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


def load_model(directory: Path, dtype: torch.dtype, **arguments: Any) -> Any:
    """The causal language model of an ordinary Hugging Face directory, ready to be asked.

    Args:
        directory: config and safetensors weights.
        dtype: type of the weights in memory.
        arguments: further ones of ``from_pretrained``.

    Raises:
        FailedPrecondition: its files lack weights.
    """
    arguments["torch_dtype" if _OLD_TRANSFORMERS else "dtype"] = dtype
    arguments.setdefault("use_safetensors", True)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory, trust_remote_code=False, local_files_only=True, output_loading_info=True, **arguments
    )
    model, info = loaded
    check_loading_info(info, f"{directory.name}: its files")
    return model.eval()


def stored_dtype(directory: Path) -> torch.dtype:
    """The type that a model's weights are stored in, by its config; float32 where it doesn't say."""
    config: Any = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    found = getattr(config, "torch_dtype" if _OLD_TRANSFORMERS else "dtype", None)
    return found if isinstance(found, torch.dtype) else torch.float32


def half_dtype(directory: Path) -> torch.dtype:
    """A 16-bit type for what isn't quantized: the stored one, bfloat16 for models stored in 32 bit."""
    found = stored_dtype(directory)
    return found if found in (torch.float16, torch.bfloat16) else torch.bfloat16
