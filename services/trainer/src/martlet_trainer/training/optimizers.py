"""Optimizers and schedules by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler
from transformers.optimization import Adafactor

from martlet_trainer.config import Hyperparameters
from martlet_trainer.training.low_rank_adamw import LowRankAdamW


def build_optimizer(model: nn.Module, numbers: Hyperparameters) -> torch.optim.Optimizer:
    """The optimizer over the model's trainable parameters; weight decay spares vectors (norms, biases).

    With ``lora_plus_ratio``, LoRA's B matrices are a group of their own; the first group has the plain learning rate in any case.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    ratio = numbers.lora_plus_ratio or 1.0
    faster = [p for name, p in trainable if ratio != 1.0 and ("lora_B" in name or "lora_embedding_B" in name)]
    ids = {id(parameter) for parameter in faster}
    others = [parameter for _, parameter in trainable if id(parameter) not in ids]
    rate = numbers.learning_rate or 0.0
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in others if parameter.ndim >= 2], "weight_decay": numbers.weight_decay},
        {"params": [parameter for parameter in others if parameter.ndim < 2], "weight_decay": 0.0},
        {"params": faster, "weight_decay": numbers.weight_decay, "lr": rate * ratio},
    ]
    if numbers.optimizer in _SCALES:
        groups = [*_projected(groups, model, numbers), *groups]
    groups = [group for group in groups if group["params"]]
    return _OPTIMIZERS[numbers.optimizer](groups, lr=numbers.learning_rate)


def _projected(groups: list[dict[str, Any]], model: Any, numbers: Hyperparameters) -> Iterator[dict[str, Any]]:
    """Take the matrices that are wider than the projection's rank out of groups, but for embeddings and head, as groups of their own."""
    head = model.get_output_embeddings()
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m is not head}
    scale = numbers.projection_scale or _SCALES[numbers.optimizer]
    for group in groups:
        chosen = [p for p in group["params"] if id(p) in linear and min(p.shape) > numbers.projection_rank]
        ids = {id(parameter) for parameter in chosen}
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]
        space = {"rank": numbers.projection_rank, "interval": numbers.projection_interval, "scale": scale}
        yield {**group, "params": chosen, **space}


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


def _low_rank(method: Literal["galore", "apollo"]) -> Callable[..., torch.optim.Optimizer]:
    return lambda groups, lr: LowRankAdamW(groups, lr, method)


#: Factor on the updates of optimizers with states of low rank, by default.
_SCALES: Mapping[str, float] = {"galore_adamw": 0.25, "apollo_adamw": 1.0}
_OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw_torch": _adamw,
    "adamw_torch_fused": _adamw_fused,
    "adamw_bnb_8bit": _bitsandbytes("AdamW8bit"),
    "paged_adamw_8bit": _bitsandbytes("PagedAdamW8bit"),
    "paged_adamw_32bit": _bitsandbytes("PagedAdamW32bit"),
    "adafactor": _adafactor,
    "sgd": _sgd,
    "galore_adamw": _low_rank("galore"),
    "apollo_adamw": _low_rank("apollo"),
}
