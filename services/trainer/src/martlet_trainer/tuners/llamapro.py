"""LLaMA Pro (arXiv 2401.02415): copies of layers are added that do nothing at first, and trained alone. The result is a model with more layers."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from martlet_core.errors import InvalidArgument
from torch import nn

from martlet_trainer.training.models import load_model
from martlet_trainer.tuners.base import TunerInputs
from martlet_trainer.tuners.blocks import OUTPUTS, layers_of
from martlet_trainer.tuners.full import FullTuner
from martlet_trainer.tuners.options import LlamaproOptions

_FIELD = "spec.tuner.options.num_new_blocks"


class LlamaproTuner(FullTuner):
    """Trains the added layers."""

    def _load(self, inputs: TunerInputs) -> Any:
        if inputs.checkpoint is not None:
            return load_model(inputs.checkpoint, torch.float32, inputs.placement.device)
        base = load_model(inputs.base_model, torch.float32, torch.device("cpu"))
        return nn.Module.to(expanded(base, self._count), inputs.placement.device)

    @property
    def _count(self) -> int:
        assert isinstance(self._options, LlamaproOptions)
        return self._options.num_new_blocks

    def _choose(self) -> None:
        layers = layers_of(self.model)
        self.model.requires_grad_(False)
        for place in added_places(len(layers) - self._count, self._count):
            layers[place].requires_grad_(True)


def added_places(layers: int, count: int) -> list[int]:
    """Where the added layers stand in the model that has them: one behind each ``layers / count`` of its own.

    Raises:
        InvalidArgument: they can't be spread evenly.
    """
    if layers % count:
        fitting = ", ".join(str(number) for number in range(1, layers + 1) if layers % number == 0)
        raise InvalidArgument.field(
            _FIELD, f"is {count}, which doesn't divide the model's {layers} layers; give one of {fitting}"
        )
    stride = layers // count
    return [(stride + 1) * (index + 1) - 1 for index in range(count)]


@torch.no_grad()
def expanded(base: Any, count: int) -> Any:
    """A model with more layers than the base model, which says what that says.

    Raises:
        InvalidArgument: they can't be spread evenly, or layers of this architecture can't be made to do nothing.
    """
    own = layers_of(base)
    places = added_places(len(own), count)
    sources = _sources(len(own), places)
    path = next(name for name, module in base.named_modules() if module is own)
    # The text model of one with other parts has no auto class.
    model = type(base)._from_config(_config(base.config, sources))
    weights, states = model.state_dict(), base.state_dict()
    found = {name: states.get(_source(name, path, sources)) for name in weights}
    if any(found[name] is None or found[name].shape != weight.shape for name, weight in weights.items()):
        raise InvalidArgument.field(
            "spec.tuner.kind", "is llamapro, and which layers this model has follows from their places; use lora"
        )
    model.load_state_dict(found)
    model.generation_config = base.generation_config
    for place in places:
        for name, module in layers_of(model)[place].named_modules():
            if name.rsplit(".", 1)[-1] in OUTPUTS and hasattr(module, "weight"):
                for parameter in module.parameters():
                    parameter.zero_()
    _require_same(base, model)
    return model


def _sources(layers: int, places: list[int]) -> list[int]:
    """For each layer of the larger model, the base model's layer that it is or is a copy of."""
    sources: list[int] = []
    for layer in range(layers):
        sources.append(layer)
        if len(sources) in places:
            sources.append(layer)
    return sources


def _source(name: str, path: str, sources: list[int]) -> str:
    """The base model's name of a weight of the larger model."""
    return re.sub(rf"^({re.escape(path)}\.)(\d+)", lambda match: f"{match[1]}{sources[int(match[2])]}", name)


def _config(config: Any, sources: list[int]) -> Any:
    larger = copy.deepcopy(config)
    text = larger.get_text_config()
    for name, value in text.to_dict().items():
        if isinstance(value, list) and len(value) == text.num_hidden_layers:  # what each layer is, such as layer_types
            setattr(text, name, [value[source] for source in sources])
    text.num_hidden_layers = len(sources)
    return larger


def _require_same(base: Any, model: Any) -> None:
    ids = torch.arange(3, 35)[None] % base.config.get_text_config().vocab_size
    wanted, found = (one.eval()(input_ids=ids, use_cache=False).logits for one in (base, model))
    if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())):
        raise InvalidArgument.field(
            "spec.tuner.kind", "is llamapro, and this model's layers can't be made to do nothing; use lora"
        )
