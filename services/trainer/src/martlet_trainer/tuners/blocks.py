"""Full training of a few layers at a time: LISA (arXiv 2403.17919) and BAdam (arXiv 2404.02827).

Which layers a step trains follows from its number and the seed alone, so checkpoints need nothing of it. What the optimizer knew of a layer is
dropped when the layer's turn is over: that is where the memory is saved.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from martlet_core.errors import InvalidArgument
from torch import nn

from martlet_trainer.tuners.base import Companion, TunerInputs
from martlet_trainer.tuners.full import FullTuner
from martlet_trainer.tuners.options import BadamOptions, LisaOptions

#: Linear maps that end a part of a layer, by the names that models give them: what they give is added to what passes the layer.
OUTPUTS = frozenset(
    {
        *("o_proj", "out_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h", "wo", "w2", "fc2", "fc_out", "fc_o"),
        *("Wo", "out_lin", "lin2"),  # of encoders
    }
)
#: Layers that are trained in a period, counted from 0.
Choice = Callable[[int], Sequence[int]]


class BlocksTuner(FullTuner):
    """Trains a few of the model's layers at a time; the result is an ordinary model directory."""

    def __init__(self, inputs: TunerInputs) -> None:
        super().__init__(inputs)
        options, seed, layers = self._options, inputs.config.seed, layers_of(self.model)
        if isinstance(options, LisaOptions):
            choice, interval = lisa_choice(len(layers), options, seed), options.step_interval
        else:
            assert isinstance(options, BadamOptions)
            choice, interval = badam_choice(len(layers), options, seed), options.switch_interval
        self.companion: Companion = _Turns(layers, choice, interval)

    def _choose(self) -> None:
        """Embeddings, last norm and head are LISA's in every step, and never BAdam's."""
        for parameter in self.model.parameters():
            parameter.requires_grad_(isinstance(self._options, LisaOptions) and parameter.is_floating_point())
        for layer in layers_of(self.model):
            layer.requires_grad_(True)


def layers_of(model: Any) -> nn.ModuleList:
    """A model's layers.

    Raises:
        InvalidArgument: they can't be told.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not found:
        raise InvalidArgument.field("spec.tuner.kind", "needs a model with a list of layers; use full or lora")
    return found[0]


def lisa_choice(layers: int, options: LisaOptions, seed: int) -> Choice:
    """As many layers as asked for, drawn anew for each period.

    Raises:
        InvalidArgument: the model has fewer.
    """
    count = options.activated_layers
    if count > layers:
        raise InvalidArgument.field(
            "spec.tuner.options.activated_layers", f"is {count}, but the model has {layers} layers"
        )
    return lambda period: random.Random(f"{seed}-{period}").sample(range(layers), count)


def badam_choice(layers: int, options: BadamOptions, seed: int) -> Choice:
    """One layer after the other."""

    def choose(period: int) -> Sequence[int]:
        turn, place = divmod(period, layers)
        order = list(range(layers))
        if options.switch_mode == "descending":
            order.reverse()
        elif options.switch_mode == "random":
            random.Random(f"{seed}-{turn}").shuffle(order)
        return [order[place]]

    return choose


class _Turns(Companion):
    """Opens the layers whose turn it is, and closes the others."""

    def __init__(self, layers: nn.ModuleList, choice: Choice, interval: int) -> None:
        self._layers = layers
        self._choice = choice
        self._interval = interval
        self._period: int | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    def begin(self, total_steps: int, optimizer: torch.optim.Optimizer) -> None:
        """See ``Companion``."""
        self._optimizer = optimizer
        self._open(0)

    def before_step(self, step: int) -> None:
        """See ``Companion``."""
        period = step // self._interval
        if period != self._period:
            self._open(period)
            self._period = period

    def _open(self, period: int) -> None:
        assert self._optimizer is not None
        chosen = set(self._choice(period))
        for index, layer in enumerate(self._layers):
            for parameter in layer.parameters():
                parameter.requires_grad_(index in chosen)
                if index not in chosen:
                    parameter.grad = None
                    self._optimizer.state.pop(parameter, None)
