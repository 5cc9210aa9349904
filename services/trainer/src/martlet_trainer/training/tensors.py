"""Nested values with tensors in them (optimizer states, random states) as one safetensors file and JSON: nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_TENSOR = "$tensor"
_TUPLE = "$tuple"
_PAIRS = "$pairs"


def save_tree(value: Any, path: Path) -> None:
    """Write a value made of dicts, lists, tuples, numbers, strings, None and tensors to ``<path>.safetensors`` and ``<path>.json``."""
    tensors: dict[str, torch.Tensor] = {}
    tree = _flatten(value, "", tensors)
    save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(tree), encoding="utf-8")


def load_tree(path: Path) -> Any:
    """Read what ``save_tree`` wrote; tensors come back on the CPU."""
    tensors = load_file(path.with_suffix(".safetensors"))
    return _restore(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), tensors)


def _flatten(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        items = [(key, _flatten(item, f"{name}.{key}", tensors)) for key, item in value.items()]
        if all(isinstance(key, str) for key, _ in items):
            return dict(items)
        return {_PAIRS: [[key, item] for key, item in items]}  # JSON would turn integer keys into text
    if isinstance(value, (list, tuple)):
        items = [_flatten(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"can't store {type(value).__name__} at {name!r}")


def _restore(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_restore(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    if _TUPLE in tree:
        return tuple(_restore(item, tensors) for item in tree[_TUPLE])
    if _PAIRS in tree:
        return {key: _restore(item, tensors) for key, item in tree[_PAIRS]}
    return {key: _restore(item, tensors) for key, item in tree.items()}
