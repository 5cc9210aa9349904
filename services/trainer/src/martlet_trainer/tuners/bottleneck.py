"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751): in each layer, behind attention and behind the feed-forward part, and before what
they give is added to the stream, small maps down to ``adapter_length`` numbers and up again are added to it, and trained alone.

peft has no such kind, so layers and files are our own: ``adapter_config.json`` (``tuner``, ``format``, options, places) and the trained weights
under the model's own names for them. ``load_bottlenecks`` puts them back onto the base model. An activation stands between the two maps, so
that no weights of the base model can hold them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.model_rules import BOTTLENECKS
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from martlet_trainer.config import parse_tuner_options
from martlet_trainer.training.heads import head_modules, write_head
from martlet_trainer.training.models import load_model
from martlet_trainer.tuners.base import Companion, TunerInputs
from martlet_trainer.tuners.blocks import OUTPUTS, layers_of
from martlet_trainer.tuners.continued import CONFIG_FILE, own_adapter_config, require_head
from martlet_trainer.tuners.options import AdapterOptions
from martlet_trainer.tuners.peft_tuner import WEIGHTS_FILE, family_of_model

#: Name of the module that each place gets.
_CHILD = "bottleneck"
_FIELD = "spec.tuner.kind"


class BottleneckTuner:
    """Trains bottlenecks beside the frozen base model, and a new head whole."""

    artifact_kind = "adapter"

    def __init__(self, inputs: TunerInputs) -> None:
        """Raises InvalidArgument if the model has no places for them, FailedPrecondition if what it goes on from doesn't fit."""
        self.companion: Companion = Companion()
        self._head, self._name = inputs.head, inputs.base_name
        options = parse_tuner_options(inputs.config.tuner)
        assert isinstance(options, AdapterOptions)
        self._options = options
        self.model: Any = load_model(
            inputs.base_model, inputs.placement.dtype, inputs.placement.device, head=inputs.head
        )
        given = inputs.checkpoint or inputs.adapter
        self._places = find_places(self.model) if given is None else tuple(own_adapter_config(given)["places"])
        self.model.requires_grad_(False)
        for name in head_modules(self.model, inputs.head.task):
            self.model.get_submodule(name).requires_grad_(True)
        insert(self.model, self._places, options)
        if family_of_model(inputs).input_gradients:
            self.model.enable_input_require_grads()
        self.model.disable_adapter = self._disabled  # as peft's models have it: what a training measures from
        if given is None:
            _require_passed(self.model)
            return
        if inputs.checkpoint is None:
            require_head(given, inputs.head)
        self.load_weights(given)

    def save_weights(self, directory: Path) -> None:
        """Write the trained weights as they are, what they are, and what the model ends in."""
        directory.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self._trained()}
        save_file(weights, directory / WEIGHTS_FILE, {"format": "pt"})
        options = self._options.model_dump()
        config = {"tuner": BOTTLENECKS, "format": 1, "base_model_name_or_path": self._name, **options}
        text = json.dumps({**config, "places": self._places}, indent=2)
        (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        write_head(self._head, self.model, directory)

    def load_weights(self, directory: Path) -> None:
        """Read weights that ``save_weights`` wrote.

        Raises:
            FailedPrecondition: they belong to another model, or to other options.
        """
        _read(dict(self._trained()), directory)

    def save_result(self, directory: Path) -> None:
        """The same as ``save_weights``."""
        self.save_weights(directory)

    def metadata(self) -> dict[str, Any]:
        """Base model, kind and options."""
        return {"base_model": self._name, "tuner": BOTTLENECKS, "options": self._options.model_dump()}

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)

    @contextmanager
    def _disabled(self) -> Iterator[None]:
        found = [module for module in self.model.modules() if isinstance(module, Bottleneck)]
        for module in found:
            module.enabled = False
        try:
            yield
        finally:
            for module in found:
                module.enabled = True


class Bottleneck(nn.Module):
    """``x + up(activation(down(x)))``; it begins as ``x``. Weights are of 32 bit, whatever the model's are.

    Shapes: x and what it gives (..., width), down (length, width), up (width, length).
    """

    def __init__(self, width: int, options: AdapterOptions) -> None:
        super().__init__()
        self.down = nn.Linear(width, options.adapter_length, dtype=torch.float32)
        self.activation = ACT2FN[options.adapter_act]
        self.up = nn.Linear(options.adapter_length, width, dtype=torch.float32)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.enabled = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if not self.enabled:
            return x
        return x + self.up(self.activation(self.down(x.to(self.down.weight.dtype)))).to(x.dtype)


def load_bottlenecks(model: Any, directory: Path) -> Any:
    """A base model with the bottlenecks of a directory in it, and with the directory's head where it ends in one.

    Args:
        model: of transformers; it is changed. Its head must be the one that ``training.heads.head_in`` finds in the directory.
        directory: what ``BottleneckTuner`` wrote.

    Raises:
        FailedPrecondition: the directory holds none, or they belong to another model.
    """
    config = own_adapter_config(directory)
    places = config["places"]
    insert(model, places, AdapterOptions(**{name: config[name] for name in AdapterOptions.model_fields}))
    wanted = load_file(directory / WEIGHTS_FILE).keys()
    _read({name: weight for name, weight in model.named_parameters() if name in wanted or _CHILD in name}, directory)
    return model


def insert(model: nn.Module, places: Sequence[str], options: AdapterOptions) -> None:
    """Put bottlenecks behind modules; the modules stay what they are, and their outputs pass through.

    Raises:
        FailedPrecondition: the model has no module of such a name.
    """
    width = _width(model)
    for place in places:
        try:
            module = model.get_submodule(place)
        except AttributeError as error:
            raise FailedPrecondition(
                f"the adapter has a place {place}, which the model lacks", reason="BAD_ADAPTER"
            ) from error
        device = next(module.parameters()).device
        module.add_module(_CHILD, Bottleneck(width, options).to(device))
        module.register_forward_hook(_pass_through)


def _pass_through(module: Any, _: Any, output: Any) -> Any:
    """What a module with a bottleneck gives: a tensor, or a tuple whose first part it is."""
    if isinstance(output, tuple):
        return (module.bottleneck(output[0]), *output[1:])
    return module.bottleneck(output)


def find_places(model: Any) -> tuple[str, ...]:
    """Names of the modules that bottlenecks stand behind: of each part of a layer the linear map that ends it, before anything is added to what
    it gives; the part itself where it has several such maps or experts.

    Raises:
        InvalidArgument: the layers can't be told, or have no such maps.
    """
    layers, found = layers_of(model), list[str]()
    path = next(name for name, module in model.named_modules() if module is layers)
    for index, layer in enumerate(layers):
        for name, part in layer.named_children():
            ends = [end for end in _ends(name, part, _width(model)) if end]
            mixed = any("expert" in below for below, _ in part.named_modules())
            if ends or mixed:
                found.append(f"{path}.{index}.{ends[0] if len(ends) == 1 and not mixed else name}")
    if not found:
        raise InvalidArgument.field(
            _FIELD, "is adapter, and no place for it was found in this model's layers; use lora"
        )
    return tuple(found)


def _ends(name: str, part: nn.Module, width: int) -> Iterator[str]:
    """Names, within its layer, of the linear maps that end a layer's part."""
    for below, module in part.named_modules(prefix=name):
        if below.rsplit(".", 1)[-1] in OUTPUTS and _outputs(module) == width:
            yield below


def _outputs(module: nn.Module) -> int | None:
    """How many numbers a linear map gives; None for other modules."""
    if isinstance(module, nn.Linear):
        return module.out_features
    return int(module.weight.shape[1]) if isinstance(module, Conv1D) else None


def _width(model: Any) -> int:
    return int(model.config.get_text_config().hidden_size)


@torch.no_grad()
def _require_passed(model: Any) -> None:
    """Refuse a model whose computation doesn't come by each of its bottlenecks: kernels may take a map's weights alone.

    Raises:
        InvalidArgument: names the first that it leaves out.
    """
    met = set[str]()
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, Bottleneck)]
    hooks = [module.register_forward_hook(lambda *_, name=name: met.add(name)) for name, module in named]
    ids = torch.arange(3, 35, device=next(model.parameters()).device)[None] % model.config.get_text_config().vocab_size
    model.eval()(input_ids=ids)
    for hook in hooks:
        hook.remove()
    missed = next((name for name, _ in named if name not in met), None)
    if missed is not None:
        raise InvalidArgument.field(
            _FIELD, f"is adapter, and this model computes past {missed.removesuffix(f'.{_CHILD}')}; use lora"
        )


@torch.no_grad()
def _read(weights: dict[str, nn.Parameter], directory: Path) -> None:
    """Fill weights from a directory's file, which must have these and no others.

    Raises:
        FailedPrecondition: it hasn't.
    """
    try:
        saved = load_file(directory / WEIGHTS_FILE)
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"the adapter's weights can't be read: {error}", reason="BAD_CHECKPOINT") from error
    odd = [name for name in saved if name not in weights or saved[name].shape != weights[name].shape]
    odd += [name for name in weights if name not in saved]
    if odd:
        raise FailedPrecondition(
            f"the adapter's weights don't fit this job: {', '.join(odd[:3])}", reason="BAD_CHECKPOINT"
        )
    for name, weight in weights.items():
        weight.copy_(saved[name])
