"""LoRA's forward and backward in one autograd node a layer.

peft computes ``base(x) + scale * B(A(x))`` as separate operations, each of which writes and later re-reads tensors of the layer's output
size. Here the low-rank part is added inside the matrix product (``addmm_``), in both directions, and only ``x`` and ``A(x)`` are kept for the
backward pass. The numbers are the same up to rounding; the modules, their names and the saved adapter are peft's own.

On a base model in bfloat16, whose adapter is kept in float32, the low-rank products run in bfloat16 as the base model's do: under autocast
they would anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn import functional


class _FusedLora(torch.autograd.Function):
    """``y = x W^T + b + scale * (x A^T) B^T`` with W and b frozen.

    Shapes: x (tokens, in), W (out, in), b (out,), A (rank, in), B (out, rank). A and B, and their gradients, may have another type than the
    rest; products are of the type of x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        low = x @ a.t().to(x.dtype)
        out = functional.linear(x, weight, bias)
        out.addmm_(low, b.t().to(x.dtype), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        grad = grads[0]
        grad_low = (grad @ b.to(grad.dtype)).mul_(ctx.scale)
        grad_a = (grad_low.t() @ x).to(a.dtype)
        grad_b = (grad.t() @ low).to(b.dtype).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            grad_x.addmm_(grad_low, a.to(grad.dtype))
        return grad_x, None, None, grad_a, grad_b, None


def fuse(model: nn.Module) -> int:
    """Switch every LoRA layer that qualifies to the fused computation; returns how many did.

    Qualified: one active plain LoRA (no DoRA, no dropout, no bias of its own) on a frozen ``nn.Linear``, weights of one type throughout or float32 on
    bfloat16.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, LoraLinear) and _qualifies(module):
            module.forward = _Forward(module)
            count += 1
    return count


def _qualifies(module: LoraLinear) -> bool:
    names = list(module.active_adapters)
    base = module.get_base_layer()
    if len(names) != 1 or type(base) is not nn.Linear or names[0] not in module.lora_A:
        return False
    name = names[0]
    down, up = module.lora_A[name], module.lora_B[name]
    plain = (
        isinstance(down, nn.Linear)
        and isinstance(up, nn.Linear)
        and up.bias is None
        and not module.lora_variant.get(name)
    )
    own, below = down.weight.dtype, base.weight.dtype
    fitting = own == up.weight.dtype and (own == below or (own, below) == (torch.float32, torch.bfloat16))
    frozen = not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)
    return bool(plain and fitting and frozen) and isinstance(module.lora_dropout[name], nn.Identity)


class _Forward:
    """A LoRA layer's forward. Parameters are looked up at each call, so loading other weights into the layer works."""

    def __init__(self, module: LoraLinear) -> None:
        self._module = module
        self._original = type(module).forward
        self._name = next(iter(module.active_adapters))

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        module = self._module
        base = module.get_base_layer()
        casts = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if casts else x.dtype
        if module.disable_adapters or module.merged or dtype != base.weight.dtype:
            return self._original(module, x, *args, **kwargs)
        x = x.to(dtype)
        a, b = module.lora_A[self._name].weight, module.lora_B[self._name].weight
        flat = x.reshape(-1, x.shape[-1])
        out: Any = _FusedLora.apply(flat, base.weight, base.bias, a, b, module.scaling[self._name])
        return out.view(*x.shape[:-1], -1)
