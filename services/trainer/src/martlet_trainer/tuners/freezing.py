"""Which of a model's own weights are trained: by share, by name, by pattern, as SWIFT's ``--freeze_parameters_ratio`` and its kin say it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import accumulate

from martlet_core.errors import InvalidArgument
from torch import nn

from martlet_trainer.tuners.options import FullOptions

_FIELD = "spec.tuner.options"


def choose_trained(model: nn.Module, options: FullOptions) -> None:
    """Set ``requires_grad`` of every weight.

    Raises:
        InvalidArgument: a name or pattern finds no weights, or none is left to train.
    """
    named = list(model.named_parameters())
    for _, parameter in named:
        parameter.requires_grad_(parameter.is_floating_point())
    frozen = int(sum(p.numel() for _, p in named) * options.freeze_parameters_ratio)
    for (_, parameter), end in zip(named, accumulate(p.numel() for _, p in named), strict=True):
        if end <= frozen:
            parameter.requires_grad_(False)
    for field, trained in (("freeze_parameters", False), ("trainable_parameters", True)):
        for name, finds in _rules(options, field):
            found = [parameter for path, parameter in named if finds(path)]
            if not found:
                some = ", ".join(path for path, _ in named[:3])
                raise InvalidArgument.field(
                    f"{_FIELD}.{name}", f"finds none of this model's weights, which are called {some}..."
                )
            for parameter in found:
                parameter.requires_grad_(trained and parameter.is_floating_point())
    if not any(parameter.requires_grad for _, parameter in named):
        raise InvalidArgument.field(_FIELD, "leaves no weights to train; freeze fewer")


def _rules(options: FullOptions, field: str) -> Iterator[tuple[str, Callable[[str], bool]]]:
    """The rules of a field and of its pattern: where each stands, and which names it finds."""
    for beginning in getattr(options, field):
        yield field, lambda path, beginning=beginning: path.startswith(beginning)
    pattern = getattr(options, f"{field}_regex")
    if pattern is not None:
        yield f"{field}_regex", lambda path: re.search(pattern, path) is not None
