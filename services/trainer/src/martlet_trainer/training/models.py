"""Loads base models and their tokenizers from ordinary Hugging Face directories."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from martlet_core.errors import InvalidArgument
from martlet_core.loading_info import check_loading_info
from martlet_inputs.base_models.model_files import files_in
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.integrations.bitsandbytes import Bnb4bitDeserialize, Bnb8bitDeserialize

from martlet_trainer.base_tasks import ENCODERS
from martlet_trainer.training.heads import AUTO_CLASSES, CAUSAL_LM, NAMES, Head, head_in, head_modules

#: Field of the request that most models are named by.
_FIELD = "spec.base_model"
#: Keys of a config that say how a model is stored, and not what it is.
_OF_FILES = (
    "architectures",
    "dtype",
    "torch_dtype",
    "model_type",
    "transformers_version",
    "_name_or_path",
    "use_cache",
)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def load_tokenizer(directory: Path, field: str = _FIELD) -> PreTrainedTokenizerBase:
    """The tokenizer of an ordinary Hugging Face directory; code that comes with it is never run.

    Raises:
        InvalidArgument: the directory has none that works; names ``field``.
    """
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument.field(field, f"its tokenizer can't be loaded: {error}") from error


def load_model(
    directory: Path,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Any = None,
    field: str = _FIELD,
    head: Head = CAUSAL_LM,
    config: Any = None,
) -> Any:
    """The model of an ordinary Hugging Face directory, or of one that bitsandbytes quantized, which stays so.

    Args:
        directory: config and safetensors weights; pickled weights and code are refused.
        dtype: type of the weights in memory, and of the arithmetic on quantized ones.
        device: where they go.
        quantization: a transformers quantization config for ordinary weights; None leaves the weights as they are stored.
        field: of the request, named in errors.
        head: what it is to end in; a head that the directory lacks begins with random weights.
        config: the model's config with changes; None for the directory's own.

    Raises:
        InvalidArgument: the directory holds no model that can be loaded so, or one whose head names other classes.
        FailedPrecondition: its files lack weights.
    """
    chosen = {"quantization_config": quantization, "config": config}
    kwargs: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if quantization is not None or files_in(directory).quantization is not None:
        kwargs["device_map"] = {"": str(device)}
    try:
        if _caps_scores(directory):
            kwargs["attn_implementation"] = "eager"
        loaded: Any = AUTO_CLASSES[head.task].from_pretrained(
            directory,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **kwargs,
            **_head_options(directory, head),
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument.field(field, f"can't be loaded as {NAMES[head.task]}: {error}") from error
    model, info = loaded
    check_loading_info(_of_the_backbone(info, model, head), f"{field}: its files")
    if head.task == "embedding" and isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None  # the embedding is pooled from the last layer; nothing would train this one
    if "device_map" not in kwargs:
        return nn.Module.to(model, device)
    _compute_in(model, dtype)
    return model


def _head_options(directory: Path, head: Head) -> dict[str, Any]:
    """What ``from_pretrained`` must know of a head.

    Raises:
        InvalidArgument: the directory has such a head, for other classes.
    """
    options = head.config()
    if not options:
        return {}
    own = head_in(directory)
    if own.task == head.task and own.labels != head.labels:
        shown = [", ".join(labels[:8]) for labels in (own.labels, head.labels)]
        raise InvalidArgument.field(
            "spec.base_model",
            f"has a head for the classes {shown[0]}, and this training's are {shown[1]}; name the same in recipe_options.labels, in the"
            " same order, or train the model that it was made from",
        )
    return {**options, "ignore_mismatched_sizes": True}


def _of_the_backbone(info: Mapping[str, Any], model: Any, head: Head) -> Mapping[str, Any]:
    """What transformers said of weights that aren't of the head: those of a new head are random, and are trained."""
    modules = head_modules(model, head.task)
    if head.task == "embedding":
        modules = ["pooler"]

    def rest(keys: Any) -> list[Any]:
        names = [(key if isinstance(key, str) else str(key[0]), key) for key in keys or ()]
        return [key for name, key in names if not name.startswith(tuple(f"{module}." for module in modules))]

    return {name: rest(info.get(name)) for name in ("missing_keys", "mismatched_keys")}


def save_model(model: Any, directory: Path, base: Path) -> None:
    """Write a whole model that came from ``base`` so that ``load_model`` reads it: the text model of a model with other parts keeps that one's
    config, by which it was found, with what training changed in the text model's (how many layers, which positions).
    """
    model.save_pretrained(directory)
    if files_in(base).config.get("model_type") != model.config.model_type:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
        text, own = config.get_text_config(), model.config.to_dict()
        for name, value in text.to_dict().items():
            if name not in _OF_FILES and name in own and own[name] != value:
                setattr(text, name, own[name])
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
    """Longest input in tokens, by the model's config, else by the tokenizer; of encoders, whichever says less: some have places that no
    token takes.

    Raises:
        InvalidArgument: the directory's config is not one that transformers knows.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument.field("spec.base_model", f"its config can't be loaded: {error}") from error
    stated = getattr(config.get_text_config(), "max_position_embeddings", None)
    if stated and config.model_type in ENCODERS:
        return int(min(stated, tokenizer.model_max_length))
    return int(stated or tokenizer.model_max_length)
