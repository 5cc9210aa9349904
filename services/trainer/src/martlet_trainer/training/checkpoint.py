"""Checkpoints: everything that a training needs to go on as if it had never stopped.

step-<n>/
    adapter_config.json, adapter_model.safetensors      or the files of a whole model: usable without the rest
    training_state/state.json                           progress, and the settings that the plan of steps depends on
    training_state/optimizer.{json,safetensors}         optimizer, schedule, loss scaler
    training_state/tuner.{json,safetensors}             what the tuner keeps beside its weights, if anything
    training_state/objective.{json,safetensors}         what the objective was made of, where it can't be made again
    training_state/random-<rank>.{json,safetensors}     random states of each process, as they were before the next step
    training_state/history.jsonl                        metrics of all steps so far
    training_state/best/                                weights with the best validation loss, if training may return them
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from martlet_core.errors import FailedPrecondition

from martlet_trainer.training.tensors import load_tree, save_tree

STATE_DIR = "training_state"
FORMAT = 1


@dataclass
class TrainingState:
    """How far a training has come.

    Attributes:
        step: optimizer steps done.
        plan: settings of the plan of steps; they must be the same when going on.
        trained_tokens: tokens of the rows trained on, over all epochs.
        train_seconds: seconds spent in steps, over all attempts that count.
        evaluated_step: last step that was validated; 0 before the first validation.
        best_loss: lowest validation loss; None before the first validation.
        best_step: step of ``best_loss``.
        evals_without_improvement: validations since ``best_step``.
        stopped_early: training ended before its last step because validation did not improve.
        history: metrics of each step (key ``step``), in order.
    """

    step: int = 0
    plan: dict[str, Any] = field(default_factory=dict)
    trained_tokens: int = 0
    train_seconds: float = 0.0
    evaluated_step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    evals_without_improvement: int = 0
    stopped_early: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


def random_states(device: torch.device) -> dict[str, Any]:
    """The random states that training can depend on, of this process."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Put random states back as ``random_states`` took them."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def write_checkpoint(
    directory: Path,
    *,
    state: TrainingState,
    save_weights: Callable[[Path], None],
    optimizer: Mapping[str, Any],
    objective: Mapping[str, torch.Tensor],
    tuner: Mapping[str, Any],
    random_by_rank: list[Any],
    best_weights: Path | None,
) -> Path:
    """Write ``directory/step-<n>`` whole or not at all: under another name first, flushed to disk, then renamed.

    Args:
        directory: where checkpoints go.
        state: progress.
        save_weights: writes the weights into a directory.
        optimizer: states of optimizer, schedule and scaler.
        objective: what the objective was made of, such as log-probabilities under the model that training started from.
        tuner: what the tuner keeps beside its weights.
        random_by_rank: random states of each process.
        best_weights: directory of the best weights so far, linked into the checkpoint; None if they need not be kept.
    """
    final = directory / f"step-{state.step}"
    if final.exists():
        return final
    temporary = directory / f".step-{state.step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    inside = temporary / STATE_DIR
    inside.mkdir(parents=True)
    save_weights(temporary)
    save_tree(optimizer, inside / "optimizer")
    for name, tree in (("objective", objective), ("tuner", tuner)):
        if tree:
            save_tree(dict(tree), inside / name)
    for rank, states in enumerate(random_by_rank):
        save_tree(states, inside / f"random-{rank}")
    _write_state(state, inside)
    if best_weights is not None:
        shutil.copytree(best_weights, inside / "best", copy_function=_link)
    _flush(temporary)
    temporary.rename(final)
    _flush_directory(directory)
    return final


def read_state(checkpoint: Path) -> TrainingState:
    """Progress as a checkpoint has it.

    Raises:
        FailedPrecondition: it was written by another version of this format, or is no checkpoint.
    """
    inside = checkpoint / STATE_DIR
    try:
        values = json.loads((inside / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FailedPrecondition(
            f"{checkpoint.name} is no readable checkpoint: {error}", reason="BAD_CHECKPOINT"
        ) from error
    if values.pop("format", None) != FORMAT:
        raise FailedPrecondition(
            f"{checkpoint.name} has another checkpoint format; start the job anew", reason="BAD_CHECKPOINT"
        )
    with (inside / "history.jsonl").open(encoding="utf-8") as lines:
        return TrainingState(**values, history=[json.loads(line) for line in lines])


def read_optimizer(checkpoint: Path) -> Any:
    """States of optimizer, schedule and scaler."""
    return load_tree(checkpoint / STATE_DIR / "optimizer")


def read_objective(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What the objective was made of; empty for those that keep nothing."""
    return _read_if_any(checkpoint / STATE_DIR / "objective")


def read_tuner(checkpoint: Path) -> dict[str, Any]:
    """What the tuner keeps beside its weights; empty for those that keep nothing."""
    return _read_if_any(checkpoint / STATE_DIR / "tuner")


def _read_if_any(path: Path) -> dict[str, Any]:
    return load_tree(path) if path.with_suffix(".json").is_file() else {}


def read_random_states(checkpoint: Path, rank: int) -> Any:
    """Random states of one process."""
    return load_tree(checkpoint / STATE_DIR / f"random-{rank}")


def _write_state(state: TrainingState, inside: Path) -> None:
    values = {**asdict(state), "format": FORMAT}
    history = values.pop("history")
    (inside / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history), encoding="utf-8")
    (inside / "state.json").write_text(json.dumps(values), encoding="utf-8")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _flush(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _flush_directory(path)
    _flush_directory(directory)


def _flush_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
