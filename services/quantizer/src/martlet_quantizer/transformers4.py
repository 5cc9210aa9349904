"""Makes a model that transformers 5 saved readable by transformers 4, which AutoAWQ needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def readable_copy(source: Path, target: Path) -> Path:
    """A directory with the same weights and a config in the words of transformers 4.

    Args:
        source: the model; it isn't touched.
        target: written, with links to the big files.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        link = target / path.name
        if path.is_file() and not link.exists():
            link.symlink_to(path.resolve())
    _rewrite(target / "config.json", older_config)
    _rewrite(target / "tokenizer_config.json", older_tokenizer_config)
    return target


def older_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the rotary numbers, the count of experts and the type of the weights where transformers 4 reads them.

    Without this it takes 10000 for ``rope_theta``, whatever the model was trained with, and says nothing.
    """
    values = dict(config)
    rope = values.get("rope_parameters")
    if isinstance(rope, Mapping) and "rope_type" in rope:
        if "rope_theta" in rope:
            values.setdefault("rope_theta", rope["rope_theta"])
        if rope["rope_type"] != "default":
            values.setdefault("rope_scaling", {k: v for k, v in rope.items() if k != "rope_theta"})
    if str(values.get("model_type", "")).endswith("_moe") and "num_local_experts" in values:
        values.setdefault("num_experts", values["num_local_experts"])
    if "dtype" in values:
        values.setdefault("torch_dtype", values["dtype"])
    return values


def older_tokenizer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer's config with a class that transformers 4 has."""
    values = dict(config)
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):  # transformers 4 wants names for them
        extra = values.pop("extra_special_tokens")
        values.setdefault("additional_special_tokens", extra)
    return values


def _rewrite(path: Path, change: Any) -> None:
    if not path.is_file():
        return
    values = change(json.loads(path.read_text(encoding="utf-8")))
    path.unlink()  # the link, not what it points to
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")
