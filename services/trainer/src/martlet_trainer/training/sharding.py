"""A training's weights, gradients and optimizer states spread over its processes, by PyTorch's FSDP2 (``fully_shard``).

``zero3`` keeps of each matrix a part in each process and gathers it where it is needed; ``zero2`` keeps the gathered weights from a step's forward
to its backward pass, and spreads gradients and optimizer states alone between steps (arXiv 1910.02054). The numbers are those of a training
in which every process has the whole model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

#: Values of ``resources.sharding`` that spread something, and whether weights are let go between forward and backward pass.
KINDS: Mapping[str, bool] = {"zero2": False, "zero3": True}


def shard(model: nn.Module, kind: str, device: torch.device) -> None:
    """Spread a model over all processes, in place; each calls it with the same weights.

    Args:
        model: any transformers model, in an adapter or not.
        kind: of ``KINDS``.
        device: this process's.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=KINDS[kind])
    fully_shard(model, mesh=mesh, reshard_after_forward=KINDS[kind])


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that are gathered one at a time: what transformers says of a model that mustn't be split."""
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return [module for module in model.modules() if type(module).__name__ in names]


def exchange_gradients(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass exchanges gradients; until it does, each process sums its own."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(wanted)


@contextmanager
def whole(model: nn.Module, *, is_first: bool, keep: bool = False) -> Iterator[None]:
    """Give the first process the whole weights that are trained, as plain tensors; every process enters and leaves together.

    Args:
        model: a sharded model.
        is_first: whether this is the first process. The others' weights stay as they are.
        keep: what the first process made of the weights is spread again at the end, else it is forgotten.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.reshard()
    classes = {module: type(module) for module in sharded}
    places = _trained(model)
    hooks = {module: module._load_state_dict_post_hooks for module, _, _ in places}
    gathered: dict[int, nn.Parameter] = {}
    for _, _, parameter in places:
        if id(parameter) not in gathered:
            full = parameter.detach().full_tensor()  # every process takes part
            gathered[id(parameter)] = nn.Parameter(full if is_first else full.new_empty(0))
    if is_first:
        for module, kind in classes.items():
            module.__class__ = kind.__mro__[
                2
            ]  # its own class: savers write its name, and nothing is to be sharded on the way
        for module in hooks:  # they look for spread parameters after weights were loaded
            module._load_state_dict_post_hooks = OrderedDict()
        for module, name, parameter in places:
            module._parameters[name] = gathered[id(parameter)]
    try:
        yield
    finally:
        if is_first:
            for module, kind in classes.items():
                module.__class__ = kind
            for module, kept in hooks.items():
                module._load_state_dict_post_hooks = kept
            for module, name, parameter in places:
                module._parameters[name] = parameter
    if keep:
        for _, _, parameter in places:
            if id(parameter) in gathered:
                _spread(gathered.pop(id(parameter)).detach(), parameter)


def _trained(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Where the trained parameters are: module, name, parameter. Tied ones are there several times."""
    return [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if isinstance(parameter, DTensor) and parameter.requires_grad
    ]


def _spread(whole: torch.Tensor, parameter: Any) -> None:
    """Put the first process's whole tensor into a spread parameter."""
    source = whole if whole.numel() else torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        parameter.copy_(distribute_tensor(source.to(parameter.dtype), parameter.device_mesh, parameter.placements))


def whole_state(optimizer: Any) -> dict[str, Any]:
    """An optimizer's state with whole tensors, as one process alone would have it; every process takes part."""
    state = optimizer.state_dict()
    entries = {
        index: {name: v.full_tensor() if isinstance(v, DTensor) else v for name, v in entry.items()}
        for index, entry in state["state"].items()
    }
    return {**state, "state": entries}


def spread_state(optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``whole_state``: what ``optimizer.load_state_dict`` takes. Values that aren't shaped as their parameter stay whole."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def spread(parameter: Any, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.shape != parameter.shape or not isinstance(parameter, DTensor):
            return value
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)

    entries = {
        index: {name: spread(parameters[int(index)], v) for name, v in entry.items()}
        for index, entry in state["state"].items()
    }
    return {**state, "state": entries}
