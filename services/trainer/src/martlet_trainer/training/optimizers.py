"""Optimizers and schedules by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler
from transformers.optimization import Adafactor

from martlet_trainer.config import Hyperparameters


def build_optimizer(model: nn.Module, numbers: Hyperparameters) -> torch.optim.Optimizer:
    """The optimizer over the model's trainable parameters; weight decay spares vectors (norms, biases)."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trainable if parameter.ndim >= 2], "weight_decay": numbers.weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return _OPTIMIZERS[numbers.optimizer](groups, lr=numbers.learning_rate)


def build_schedule(optimizer: torch.optim.Optimizer, numbers: Hyperparameters, total_steps: int) -> LRScheduler:
    """Warm-up, then the named schedule down to the last step."""
    warmup = 0 if numbers.learning_rate_schedule == "constant" else round(numbers.warmup_ratio * total_steps)
    return get_scheduler(
        numbers.learning_rate_schedule, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps
    )


def _bitsandbytes(name: str) -> Callable[..., torch.optim.Optimizer]:
    def build(groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        from bitsandbytes import optim

        return getattr(optim, name)(groups, lr=lr)

    return build


def _adamw(groups: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr)


def _adamw_fused(groups: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def _adafactor(groups: Any, lr: float) -> torch.optim.Optimizer:
    return Adafactor(groups, lr=lr, scale_parameter=False, relative_step=False)


def _sgd(groups: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr)


_OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw_torch": _adamw,
    "adamw_torch_fused": _adamw_fused,
    "adamw_bnb_8bit": _bitsandbytes("AdamW8bit"),
    "paged_adamw_8bit": _bitsandbytes("PagedAdamW8bit"),
    "paged_adamw_32bit": _bitsandbytes("PagedAdamW32bit"),
    "adafactor": _adafactor,
    "sgd": _sgd,
}
