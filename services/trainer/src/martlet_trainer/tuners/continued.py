"""Going on from an adapter: its shape and its base model are its own, whatever the request leaves open."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.model_rules import BOTTLENECKS
from peft import LoraConfig, PeftConfig, PeftModel

from martlet_trainer.adapter_shape import as_bottlenecks, require_shape
from martlet_trainer.config import TrainingConfig
from martlet_trainer.training.heads import NAMES, Head, head_in
from martlet_trainer.tuners.options import AdapterOptions

CONFIG_FILE = "adapter_config.json"


def own_adapter_config(directory: Path) -> dict[str, Any]:
    """The config of bottlenecks (``tuners.bottleneck``); empty for adapters of peft and for what can't be read.

    Raises:
        FailedPrecondition: a later version of this code wrote it.
    """
    try:
        found = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or found.get("tuner") != BOTTLENECKS:
        return {}
    if found.get("format") != 1:
        raise FailedPrecondition(f"the adapter has another format ({found.get('format')})", reason="BAD_ADAPTER")
    return found


def read_adapter_config(directory: Path) -> LoraConfig:
    """The config of an adapter.

    Raises:
        FailedPrecondition: the directory holds no LoRA adapter.
    """
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FailedPrecondition(
            f"spec.base_model: holds no adapter that can be read: {error}", reason="BAD_ADAPTER"
        ) from error
    if not isinstance(config, LoraConfig):
        raise FailedPrecondition(
            f"spec.base_model: is an adapter of kind {config.peft_type}; only LoRA adapters and bottlenecks can be trained on",
            reason="BAD_ADAPTER",
        )
    return config


def with_shape_of(config: TrainingConfig, adapter: Path) -> TrainingConfig:
    """The config with the tuner's fields as the adapter has them; its dropout too, unless the request sets one.

    Args:
        config: as asked for, before defaults were filled in.
        adapter: a peft directory, or bottlenecks'.

    Raises:
        InvalidArgument: the request asks for another shape.
        FailedPrecondition: the directory holds no adapter that can be trained on.
    """
    own = own_adapter_config(adapter)
    if own:
        return as_bottlenecks(config, {name: own[name] for name in AdapterOptions.model_fields})
    found = read_adapter_config(adapter)
    targets = found.target_modules
    shape: dict[str, Any] = {
        "lora_rank": found.r,
        "lora_alpha": float(found.lora_alpha),
        "target_modules": () if isinstance(targets, str) else tuple(sorted(targets or ())),
        "target_regex": targets if isinstance(targets, str) else None,
        "modules_to_save": tuple(sorted(found.modules_to_save or ())),
        "use_rslora": bool(found.use_rslora),
        "use_dora": bool(found.use_dora),
    }
    require_shape(config.tuner, config.base_model, shape)
    if "lora_dropout" not in config.tuner.model_fields_set:
        shape["lora_dropout"] = found.lora_dropout
    return config.model_copy(update={"tuner": config.tuner.model_copy(update=shape)})


def base_name_of(adapter: Path) -> str:
    """The base model's name as the adapter itself records it; empty if it doesn't."""
    own = own_adapter_config(adapter)
    if own:
        return str(own["base_model_name_or_path"])
    return str(read_adapter_config(adapter).base_model_name_or_path or "")


def require_head(adapter: Path, head: Head) -> None:
    """Refuse to go on with an adapter whose head says other classes.

    Raises:
        InvalidArgument: with what to do instead.
    """
    own = head_in(adapter)
    if (own.task, own.labels, own.pooling) != (head.task, head.labels, head.pooling):
        raise InvalidArgument.field(
            "spec.base_model",
            f"its adapter ends in {_described(own)}, and this training in {_described(head)}; name the same under recipe_options, or train"
            " the model underneath",
        )


def _described(head: Head) -> str:
    return ", ".join(filter(None, (NAMES[head.task], " and ".join(head.labels[:8]), head.pooling)))


def load_adapter(base: Any, directory: Path, dropout: float) -> PeftModel:
    """The base model with the adapter on it, ready to be trained.

    Raises:
        FailedPrecondition: the adapter doesn't fit the base model.
    """
    config = read_adapter_config(directory)
    config.lora_dropout = dropout
    return attach(base, directory, "spec.base_model", is_trainable=True, config=config)


def attach(base: Any, directory: Path, field: str, **options: Any) -> PeftModel:
    """The base model with the adapter on it, all of it: where peft doesn't find a part's place, it says so in a warning alone.

    Args:
        base: the model underneath.
        directory: a peft directory.
        field: the request's field that named the adapter.
        options: of ``PeftModel.from_pretrained``.

    Raises:
        FailedPrecondition: the adapter doesn't fit the base model, or not the whole of it does.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            return PeftModel.from_pretrained(base, directory, **options)
    except (OSError, ValueError, RuntimeError, UserWarning) as error:
        raise FailedPrecondition(
            f"{field}: the adapter doesn't fit its base model: {error}", reason="BAD_ADAPTER"
        ) from error
