"""Which linear layers a method quantizes, and in groups of which size."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from martlet_core.errors import InvalidArgument

#: Sizes that a group may fall to.
_FALLBACKS = (64, 32)

Layers = Mapping[str, tuple[int, int]]


def linear_layers(directory: Path) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """The model's linear layers, name -> (out_features, in_features), and the names of those that make scores for tokens.

    The model is built without memory for its weights.

    Raises:
        InvalidArgument: transformers knows no causal language model of that config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument.field("spec.model", f"can't be built as a causal language model: {error}") from error
    head = model.get_output_embeddings()
    layers: dict[str, tuple[int, int]] = {}
    heads: list[str] = []
    for name, module in model.named_modules():
        if module is head:
            heads.append(name)
        elif isinstance(module, torch.nn.Linear):
            layers[name] = (module.out_features, module.in_features)
    return layers, heads


def weight_count(directory: Path) -> int:
    """Weights of the model as transformers builds it; tied ones count once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def split(layers: Layers, ignore: Sequence[str]) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Part the layers into those to quantize and the names of those that ``ignore`` leaves alone.

    Args:
        layers: all linear layers.
        ignore: names, last parts of names (``down_proj``, ``layers.0.mlp.up_proj``), beginnings that end at a dot
            (``model.layers.0``), or ``re:`` and a regular expression that matches the whole name.

    Raises:
        InvalidArgument: an entry matches no layer, isn't a regular expression, or nothing is left to quantize.
    """
    alone: set[str] = set()
    for index, entry in enumerate(ignore):
        field = f"spec.options.ignore[{index}]"
        matches = _matcher(entry, field)
        found = {name for name in layers if matches(name)}
        if not found:
            parts = sorted({name.rsplit(".", 1)[-1] for name in layers})
            close = difflib.get_close_matches(entry.rsplit(".", 1)[-1], parts, n=2)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            description = f"{entry!r} matches no linear layer; {hint}their names end in {', '.join(parts)}"
            raise InvalidArgument.field(field, description)
        alone |= found
    kept = {name: shape for name, shape in layers.items() if name not in alone}
    if not kept:
        raise InvalidArgument.field("spec.options.ignore", "leaves no layer to quantize")
    return kept, sorted(alone)


def _matcher(entry: str, field: str) -> Callable[[str], bool]:
    if entry.startswith("re:"):
        try:
            pattern = re.compile(entry.removeprefix("re:"))
        except re.error as error:
            raise InvalidArgument.field(field, f"{entry!r} is no regular expression: {error}") from error
        return lambda name: pattern.fullmatch(name) is not None
    return lambda name: name == entry or name.endswith("." + entry) or name.startswith(entry + ".")


def fit_group_size(asked: int, layers: Layers) -> int:
    """The largest of ``asked``, 64 and 32 that divides every layer's in_features.

    Raises:
        InvalidArgument: none does; names the layer.
    """
    sizes = [asked, *(size for size in _FALLBACKS if size < asked)]
    for size in sizes:
        if all(columns % size == 0 for _, columns in layers.values()):
            return size
    name, columns = next((n, c) for n, (_, c) in layers.items() if c % sizes[-1])
    raise InvalidArgument.field(
        "spec.options.group_size",
        f"none of {', '.join(map(str, sizes))} divides the {columns} in_features of {name}; leave such layers alone"
        " with options.ignore, or use a method without groups",
    )
