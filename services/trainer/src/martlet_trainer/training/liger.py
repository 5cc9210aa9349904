"""Liger's Triton kernels (arXiv 2410.10989) in the place of a model's norms, rotary positions and gated feed-forward parts: less memory, the
same numbers up to rounding. They need an NVIDIA GPU.

Its fused linear map and cross entropy stay out: it would take the forward pass of the whole model over, and the loss here (``training.loss``)
computes no logits but the targets', in pieces, with weights for each token, which that one doesn't know. Nothing is left for it to save.
"""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

import torch
from martlet_core.errors import FailedPrecondition, InvalidArgument

_FIELD = "spec.hyperparameters.use_liger_kernel"
#: What stays the model's own, by the names of Liger's arguments; not every architecture's function knows both.
_LEFT_OUT = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def require_liger(device: torch.device) -> None:
    """Refuse where the kernels can't run.

    Raises:
        InvalidArgument: the training isn't on a GPU.
        FailedPrecondition: this environment hasn't the package.
    """
    if device.type != "cuda":
        raise InvalidArgument.field(
            _FIELD, f"is true, and its kernels need a GPU, but the training runs on {device.type}; leave it out"
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise FailedPrecondition(
            "the job asks for Liger's kernels (hyperparameters.use_liger_kernel), but this worker's environment has no liger-kernel; install"
            " services/trainer/requirements.cuda.txt, or leave the field out",
            reason="NO_LIGER",
        )


def use_liger(model: Any) -> None:
    """Put the kernels into a model, also into one with an adapter of peft on it. Other models of its architecture in this process get a part of them.

    Raises:
        InvalidArgument: there are none for its architecture.
    """
    # In environments with CUDA alone, so that the types of the others' can't find it.
    from liger_kernel.transformers.monkey_patch import (  # pyright: ignore[reportMissingImports]
        MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN,
    )

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind = base.config.model_type
    if kind not in KNOWN:
        raise InvalidArgument.field(
            _FIELD, f"is true, and Liger has no kernels for models of type {kind}; leave it out"
        )
    apply = KNOWN[kind]
    taken = inspect.signature(apply).parameters
    apply(model=base, **{name: value for name, value in _LEFT_OUT.items() if name in taken})
