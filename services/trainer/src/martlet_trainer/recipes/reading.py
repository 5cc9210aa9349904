"""A training's data sets, from its working directory to examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from martlet_core.errors import FailedPrecondition
from martlet_core.recipe import Report
from martlet_inputs.rows.report import DataReport
from transformers import PreTrainedTokenizerBase

from martlet_trainer.config import TrainingConfig, resolve_max_length
from martlet_trainer.data.encode import RowEncoder
from martlet_trainer.data.load import Loading
from martlet_trainer.data.mix import mix
from martlet_trainer.training.models import context_length

#: Fields of ``DataConfig`` that decide which tokens a row becomes.
_DECIDES_TOKENS = {"max_length", "on_long_rows", "assistant_only_loss", "last_round_only", "system"}


def with_max_length(config: TrainingConfig, base_model: Path, tokenizer: PreTrainedTokenizerBase) -> TrainingConfig:
    """The config with ``max_length`` filled in."""
    context = int(context_length(base_model, tokenizer) * config.tuner.context_factor)
    max_length = resolve_max_length(config.data.max_length, context)
    return config.model_copy(update={"data": config.data.model_copy(update={"max_length": max_length})})


def row_encoder(config: TrainingConfig, tokenizer: PreTrainedTokenizerBase) -> RowEncoder:
    """The encoder of a config whose ``max_length`` is filled in."""
    data = config.data
    return RowEncoder(
        tokenizer,
        max_length=data.max_length or 0,
        on_long_rows=data.on_long_rows,
        assistant_only_loss=data.assistant_only_loss,
        last_round_only=data.last_round_only,
        system=data.system,
    )


def what_decides_tokens(config: TrainingConfig) -> dict[str, Any]:
    """All that decides which tokens a row becomes, beside the row and the tokenizer; JSON-ready."""
    return {"recipe": config.recipe, **config.data.model_dump(mode="json", include=_DECIDES_TOKENS)}


def read_data(
    config: TrainingConfig, loading: Loading, inputs: Path
) -> tuple[Sequence[Any], Sequence[Any], dict[str, DataReport]]:
    """Training examples, validation examples, and the reports of both, which are told too.

    Args:
        config: the config.
        loading: how data sets become examples.
        inputs: directory of the data sets.
    """

    def load(name: str) -> tuple[Sequence[Any], DataReport]:
        return loading.load(required_input(inputs / name), f"spec.{name}")

    loaded = [(source, *load(name)) for name, source in config.sources.items()]
    split = 0.0 if config.validation_dataset else config.data.validation_split
    rows, drawn, training = mix(loaded, split, config.seed)
    reports, validation = {"training_data": training}, drawn
    if config.validation_dataset:
        validation, reports["validation_data"] = load("validation_dataset")
    for name, found in reports.items():
        _say_data(loading.report, name, found)
    loading.report.partial_result({name: found.to_dict() for name, found in reports.items()})
    return rows, validation, reports


def required_input(path: Path) -> Path:
    """The path, if it is there; raises FailedPrecondition if it isn't."""
    if not path.exists():
        raise FailedPrecondition(f"the job's input {path.name} is missing", reason="MISSING_INPUT")
    return path


def _say_data(report: Report, name: str, found: DataReport) -> None:
    counts = f"{found.rows_read} rows read, {found.rows_used} used, {found.rows_truncated} truncated, {found.rows_refused} refused"
    report.log(
        f"{name.replace('_', ' ')}: {counts} (format {found.format}; {found.tokens} tokens, {found.loss_tokens} with loss)"
    )
    if found.ignored_fields:
        report.log(
            f"{name.replace('_', ' ')}: fields that training doesn't use: {', '.join(found.ignored_fields)}", "warn"
        )
    for source in found.sources:
        report.log(
            f"{name.replace('_', ' ')}: {source.rows_drawn} of {source.rows_used} rows of {source.name}, {source.tokens} tokens"
        )
    for issue in found.issues[:5]:
        report.log(f"{name.replace('_', ' ')}: {issue.describe()}", "warn")
