"""AdamW whose states are of low rank, for training whole models in less memory: GaLore (arXiv 2403.03507) and APOLLO (arXiv 2412.05270).

Written here because the authors' packages can't be used: galore-torch keeps its projections as Python objects, which no checkpoint of ours can
hold, and apollo-torch isn't free for commercial use. Every state is a tensor or a number, so a training goes on exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

#: How much longer than the last one an update of APOLLO may be (Fira's limiter, arXiv 2410.01623, as in APOLLO's own code).
_NORM_GROWTH = 1.01


class LowRankAdamW(torch.optim.Optimizer):
    """AdamW; matrices of groups with ``rank`` have their moments in a space of that rank.

    A group's ``interval`` is the number of steps after which the space is chosen anew, ``scale`` a factor on the update. Per matrix of shape
    (out, in), the states have ``rank * max(out, in)`` numbers twice, and the projection ``rank * min(out, in)``.

    Args:
        groups: as of torch's optimizers, with ``weight_decay`` each.
        lr: learning rate.
        method: ``galore`` projects gradients on their leading singular vectors, and the update back; ``apollo`` projects them at random and
            takes no more from the projected update than how much each channel of the gradient is to be scaled.
        betas: decay of the moments.
        eps: added to the root of the second moment.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        method: Literal["galore", "apollo"],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self._method = method
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "rank": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step; see ``torch.optim.Optimizer``."""
        loss = closure() if closure is not None else None
        index = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                index += 1
                if parameter.grad is not None:
                    self._update(parameter, group, index)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any], index: int) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        step = state.get("step", 0)
        rank = group["rank"]
        if rank and step % group["interval"] == 0:
            state["projection"] = self._projection(gradient, rank, seed=index + step)
        low = _project(gradient, state["projection"]) if rank else gradient
        direction = _adam(low, state, step + 1, group)
        if rank and self._method == "galore":
            direction = group["scale"] * _project_back(direction, state["projection"], gradient.shape)
        elif rank:
            direction = group["scale"] * _limited(gradient * _scaling(direction, low, gradient.shape), state)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
        state["step"] = step + 1

    def _projection(self, gradient: torch.Tensor, rank: int, seed: int) -> torch.Tensor:
        """Of the shorter side. Shape (rank, shorter side)."""
        shorter = min(gradient.shape)
        if self._method == "apollo":
            numbers = torch.randn(rank, shorter, generator=torch.Generator().manual_seed(seed))
            return numbers.to(gradient) / rank**0.5
        left, _, right = torch.linalg.svd(gradient.float(), full_matrices=False)
        found = right[:rank] if gradient.shape[0] >= gradient.shape[1] else left[:, :rank].T
        return found.to(gradient.dtype).contiguous()


def _project(gradient: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """Shape (out, rank) or (rank, in)."""
    return gradient @ projection.T if gradient.shape[0] >= gradient.shape[1] else projection @ gradient


def _project_back(low: torch.Tensor, projection: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return low @ projection if shape[0] >= shape[1] else projection.T @ low


def _adam(gradient: torch.Tensor, state: dict[str, Any], step: int, group: dict[str, Any]) -> torch.Tensor:
    """Adam's direction, with its moments updated."""
    if "exp_avg" not in state:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    first, second = group["betas"]
    state["exp_avg"].lerp_(gradient, 1 - first)
    state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    spread = (state["exp_avg_sq"] / (1 - second**step)).sqrt_().add_(group["eps"])
    return state["exp_avg"] / (1 - first**step) / spread


def _scaling(direction: torch.Tensor, low: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """How much longer the update of each channel of the longer side is than its gradient. Shape (out, 1) or (1, in)."""
    side = 1 if shape[0] >= shape[1] else 0
    return direction.norm(dim=side, keepdim=True) / low.norm(dim=side, keepdim=True).clamp(min=1e-8)


def _limited(update: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """The update, made shorter where it has grown too much since the last step."""
    norm = update.norm()
    if "update_norm" in state:
        limit = _NORM_GROWTH * state["update_norm"]
        update = update * (limit / norm.clamp(min=1e-8)).clamp(max=1.0)
        norm = torch.minimum(norm, limit)
    state["update_norm"] = norm
    return update
