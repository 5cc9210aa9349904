"""Training on a GPU: what the machine has, and models made on the spot, a small one and one of a real size.

``MARTLET_GPU_TESTS=cpu`` runs the same tests on the CPU with both models shrunk. That shows that the tests themselves work, and nothing about GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LLAMA = {"vocab_size": 32000, "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8}
#: 1.1 billion parameters, in TinyLlama's proportions.
REAL = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
#: Where only the tests are tested.
SHRUNK: Mapping[str, Mapping[str, int]] = {
    "small": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "real": {
        "vocab_size": 512,
        "hidden_size": 96,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    },
}


@dataclass(frozen=True)
class Machine:
    """Where the tests compute.

    Attributes:
        device: ``cuda``, or ``cpu`` where only the tests themselves are tried.
        gpu_count: GPUs.
        gpu_bytes: memory of the first one.
    """

    device: str
    gpu_count: int
    gpu_bytes: int

    def require_memory(self, gib: int) -> None:
        """Skip on a GPU that is too small."""
        if self.device == "cuda" and self.gpu_bytes < gib << 30:
            pytest.skip(f"needs a GPU of {gib} GiB, this one has {self.gpu_bytes / (1 << 30):.0f}")


@pytest.fixture(scope="session")
def machine() -> Machine:
    """The machine; skips where torch sees no GPU although there is one."""
    import torch

    if os.environ.get("MARTLET_GPU_TESTS") == "cpu":
        return Machine("cpu", 0, 0)
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no GPU; make this environment with MARTLET_ACCELERATOR=cuda")
    return Machine("cuda", torch.cuda.device_count(), torch.cuda.get_device_properties(0).total_memory)


@pytest.fixture(scope="session")
def base_model(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a random Llama stored in bfloat16, by size: ``small`` or ``real``."""
    from martlet_trainer.testing import save_random_model
    from transformers import LlamaConfig

    made: dict[str, Path] = {}

    def make(size: str) -> Path:
        if size not in made:
            shape = SHRUNK[size] if machine.device == "cpu" else {"small": SMALL, "real": REAL}[size]
            config = LlamaConfig(**{**LLAMA, **shape}, num_key_value_heads=shape["num_attention_heads"] // 4 or 1)
            made[size] = save_random_model(tmp_path_factory.mktemp(size), config, dtype="bfloat16")
        return made[size]

    return make


@pytest.fixture
def train(machine: Machine, base_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Any]:
    """Runs a recipe as a job would, ``sft`` unless the spec names another: ``train(size, rows, **spec)`` -> (result, report); ``resume``
    and ``should_stop`` as the recipe has them.
    """
    import torch
    from martlet_trainer.recipes.training import run
    from martlet_trainer.testing import Recorder, lay_out, training_spec

    def go(
        size: str,
        rows: list[Any],
        *,
        resume: Path | None = None,
        should_stop: Callable[[Recorder], bool] = lambda _: False,
        report: Recorder | None = None,
        **changes: Any,
    ) -> tuple[Any, Recorder]:
        if machine.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        spec = training_spec(**changes)
        spec["resources"] = {**spec["resources"], "device": machine.device}
        teacher = base_model(size) if spec.get("recipe") == "distill" else None
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        workdir = lay_out(directory, base_model(size), rows, teacher=teacher, resume=resume)
        told = report or Recorder()
        return run(spec, workdir, told, lambda: should_stop(told)), told

    return go
