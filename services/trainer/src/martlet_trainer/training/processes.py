"""The processes of one training as one: what they sum, agree on and wait for. With a single process everything is local."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from martlet_trainer.training import sharding
from martlet_trainer.training.devices import Placement


class Processes:
    """Wraps accelerate and FSDP2 for the few things the loop needs. Build one a training, in every rank alike."""

    def __init__(self, placement: Placement, kind: str = "none") -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        self._accelerator = Accelerator(cpu=placement.device.type == "cpu", mixed_precision=placement.mixed_precision)
        self._device = placement.device
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        self._sharding = kind if self.count > 1 else "none"

    @property
    def is_first(self) -> bool:
        """True in the process that speaks and writes for all."""
        return self.rank == 0

    @property
    def shards(self) -> bool:
        """Whether the weights are spread: then every process must compute whenever one does."""
        return self._sharding != "none"

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as steps call it: spread over the processes in place, or wrapped for the exchange of gradients."""
        if self.shards:
            sharding.shard(model, self._sharding, self._device)
            return model
        return self._accelerator.prepare_model(model, device_placement=False) if self.count > 1 else model

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> Any:
        """The optimizer wrapped for loss scaling."""
        return self._accelerator.prepare_optimizer(optimizer, device_placement=False)

    def whole(self, model: nn.Module, *, keep: bool = False) -> AbstractContextManager[None]:
        """The first process has all trained weights inside; every process must enter it. ``keep``: what it changes of them stays."""
        return sharding.whole(model, is_first=self.is_first, keep=keep) if self.shards else nullcontext()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """An optimizer's state, whole; every process must ask."""
        return sharding.whole_state(optimizer) if self.shards else optimizer.state_dict()

    def load_optimizer_state(self, optimizer: Any, state: Mapping[str, Any]) -> None:
        """Put back what ``optimizer_state`` gave."""
        optimizer.load_state_dict(sharding.spread_state(optimizer, state) if self.shards else state)

    @contextmanager
    def accumulate(self, model: nn.Module, is_last: bool) -> Iterator[None]:
        """One micro-batch: gradients are exchanged after the last one of a step only."""
        waiting = nullcontext() if is_last or self.count == 1 or self.shards else self._accelerator.no_sync(model)
        if self.shards:
            sharding.exchange_gradients(model, is_last)
        with waiting, self._accelerator.autocast():
            yield

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Forward passes without gradients, in the training's arithmetic."""
        with torch.no_grad(), self._accelerator.autocast():
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of a loss, scaled where the arithmetic needs it."""
        self._accelerator.backward(loss)

    def clip(self, parameters: list[nn.Parameter], max_norm: float) -> float:
        """Norm of the gradients before clipping; ``max_norm`` 0 only measures."""
        norm: Any = self._accelerator.clip_grad_norm_(parameters, max_norm or float("inf"))
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def sum(self, values: list[float]) -> list[float]:
        """Sums over the processes."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        distributed.all_reduce(tensor)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; every process gets the same answer."""
        return self.sum([float(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, in the first one; empty lists elsewhere."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.is_first else None
        distributed.gather_object(value, values)
        return values or []

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            distributed.barrier()

    def scaler_state(self) -> dict[str, Any]:
        """State of the loss scaler; empty without one."""
        return dict(self._accelerator.scaler.state_dict()) if self._accelerator.scaler is not None else {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Put back what ``scaler_state`` gave."""
        if state and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state)
