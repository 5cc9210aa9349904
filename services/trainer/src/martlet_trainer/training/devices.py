"""Which device a training runs on, in which arithmetic, and how much memory it took."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

import torch
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.gpu_memory import limit_memory

from martlet_trainer.config import TrainingConfig

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """Where and how to compute.

    Attributes:
        device: this process's device.
        precision: ``float32``, ``bfloat16`` or ``float16``.
    """

    device: torch.device
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        """The type of the arithmetic."""
        return _TYPES[self.precision]

    @property
    def mixed_precision(self) -> str:
        """accelerate's word for it."""
        return {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[self.precision]


def place(config: TrainingConfig, local_rank: int = 0) -> Placement:
    """Decide by the config and by what this machine has.

    Raises:
        FailedPrecondition: the config asks for GPUs that aren't there.
        InvalidArgument: the arithmetic doesn't work on the device.
    """
    wanted, count = config.resources.device, config.resources.device_count
    gpus = torch.cuda.device_count() if wanted != "cpu" and torch.cuda.is_available() else 0
    if wanted == "cuda" and gpus < count:
        raise FailedPrecondition(f"the job asks for {count} GPUs, but this worker has {gpus}", reason="NO_GPU")
    if wanted == "auto" and 0 < gpus < count:
        raise FailedPrecondition(f"the job asks for {count} devices, but this worker has {gpus} GPUs", reason="NO_GPU")
    device = torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    precision = config.hyperparameters.precision
    if precision == "auto":
        precision = "bfloat16" if _is_fast_at_bfloat16(device) else "float32"
    if precision == "float16" and device.type == "cpu":
        raise InvalidArgument.field(
            "spec.hyperparameters.precision", "is float16, which needs a GPU; use auto, float32 or bfloat16"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
        limit_memory(torch.cuda, local_rank)
    return Placement(device, precision)


def describe(placement: Placement, count: int) -> str:
    """The devices of a training for people: ``cpu``, ``NVIDIA H200 x 4``."""
    device = placement.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name} x {count}" if count > 1 else name


def set_threads(process_count: int) -> None:
    """Share the CPUs that this process may use among the training's processes; OMP_NUM_THREADS wins if it is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // process_count))


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this process held: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _is_fast_at_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without AMX, CPUs run bfloat16 matrix products several times slower than float32 ones (measured on AVX2: 6 to 7 times).
    return bool(torch.cpu._is_amx_tile_supported())
