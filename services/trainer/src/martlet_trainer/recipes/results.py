"""What a training leaves: the model, its metrics, and the job's result."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from martlet_core.recipe import OutputArtifact, RecipeResult
from martlet_inputs.rows.report import DataReport

from martlet_trainer.config import TrainingConfig
from martlet_trainer.recipes import RECIPES
from martlet_trainer.training.checkpoint import TrainingState
from martlet_trainer.training.devices import Placement, describe, peak_memory_bytes
from martlet_trainer.training.loop import count_parameters
from martlet_trainer.tuners.base import Tuner

#: Numbers of a step that say how it went, and not how well the model does.
_OF_THE_STEP = frozenset(
    {
        "step",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "samples_per_second",
        "epoch",
        "peak_memory_bytes",
    }
)


def write_result(
    config: TrainingConfig,
    tuner: Tuner,
    state: TrainingState,
    reports: Mapping[str, DataReport],
    workdir: Path,
    placement: Placement,
) -> RecipeResult:
    """Write the outputs and sum up."""
    output = workdir / "output"
    trained_parameters, _ = count_parameters(tuner.model)
    tuner.save_result(output / "model")
    write_metrics(state.history, output / "metrics" / "metrics.csv")
    last = state.history[-1]
    metrics = {
        f"train_{name}": value
        for name, value in last.items()
        if name not in _OF_THE_STEP and not name.startswith("valid_")
    }
    if state.best_loss is not None:
        metrics |= {"best_valid_loss": state.best_loss, "best_step": float(state.best_step)}
        validated = next(entry for entry in reversed(state.history) if "valid_loss" in entry)
        metrics |= {name: value for name, value in validated.items() if name.startswith("valid_")}
    metrics["steps"] = float(state.step)
    metrics["trained_parameters"] = float(trained_parameters)
    metrics["tokens_per_second"] = state.trained_tokens / max(state.train_seconds, 1e-9)
    values = {
        "trained_tokens": state.trained_tokens,
        **{name: found.to_dict() for name, found in reports.items()},
        "metrics": metrics,
        "resolved_config": shown(config),
        "peak_memory_bytes": peak_memory_bytes(placement.device),
        "train_seconds": state.train_seconds,
        "device": describe(placement, config.resources.device_count),
    }
    facts = {**tuner.metadata(), "recipe": config.recipe, "steps": state.step}
    if RECIPES[config.recipe].task != "causal_lm":
        facts["task"] = config.recipe
    return RecipeResult(
        values,
        {
            "model": OutputArtifact(output / "model", tuner.artifact_kind, facts),
            "metrics": OutputArtifact(output / "metrics", "report", {"content": "metrics by step, CSV"}),
        },
    )


def shown(config: TrainingConfig) -> dict[str, Any]:
    """A config as results and events show it."""
    return config.model_dump(mode="json", exclude_none=True)


#: Names of OpenAI's results file for ours, in its order; columns of our own follow.
_RESULT_COLUMNS = {
    "step": "step",
    "loss": "train_loss",
    "token_accuracy": "train_accuracy",
    "valid_loss": "valid_loss",
    "valid_token_accuracy": "valid_mean_token_accuracy",
}


def write_metrics(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """The metrics by step as CSV; cells of steps that measured nothing are empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys([*_RESULT_COLUMNS, *(name for entry in history for name in entry)])
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [_RESULT_COLUMNS.get(name, name) for name in names], lineterminator="\n")
        writer.writeheader()
        writer.writerows({_RESULT_COLUMNS.get(name, name): value for name, value in entry.items()} for entry in history)
