"""A training's data sets, from its working directory to examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.recipe import Report
from martlet_inputs.rows.report import DataReport
from transformers import PreTrainedTokenizerBase

from martlet_trainer.config import TrainingConfig, resolve_max_length, row_kind
from martlet_trainer.data.encode import RowEncoder
from martlet_trainer.data.examples import Encode
from martlet_trainer.data.load import load_rows, split_rows
from martlet_trainer.training.models import context_length


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


def read_data(
    config: TrainingConfig, encode: Encode, inputs: Path, report: Report, check_stop: Callable[[], None]
) -> tuple[list[Any], list[Any], dict[str, DataReport]]:
    """Training examples, validation examples, and the reports of both data sets, which are told too.

    Args:
        config: the config.
        encode: makes examples of rows.
        inputs: directory of the data sets.
        report: told what was read.
        check_stop: called now and then; raises to stop.
    """
    data, kind = config.data, row_kind(config)

    def load(name: str) -> tuple[list[Any], DataReport]:
        return load_rows(required_input(inputs / name), encode, kind, data.on_bad_rows, f"spec.{name}", check_stop)

    rows, training = load("training_dataset")
    reports, validation = {"training_data": training}, list[Any]()
    if config.validation_dataset:
        validation, reports["validation_data"] = load("validation_dataset")
    elif data.validation_split > 0:
        rows, validation = _split(rows, data.validation_split, config.seed)
    for name, found in reports.items():
        _say_data(report, name, found)
    report.partial_result({name: found.to_dict() for name, found in reports.items()})
    return rows, validation, reports


def required_input(path: Path) -> Path:
    """The path, if it is there; raises FailedPrecondition if it isn't."""
    if not path.exists():
        raise FailedPrecondition(f"the job's input {path.name} is missing", reason="MISSING_INPUT")
    return path


def _split(rows: Sequence[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    if len(rows) < 2:
        raise InvalidArgument.field(
            "spec.data.validation_split", "needs at least two usable rows; set it to 0, or bring more rows"
        )
    return split_rows(rows, share, seed)


def _say_data(report: Report, name: str, found: DataReport) -> None:
    counts = f"{found.rows_read} rows read, {found.rows_used} used, {found.rows_truncated} truncated, {found.rows_refused} refused"
    report.log(
        f"{name.replace('_', ' ')}: {counts} (format {found.format}; {found.tokens} tokens, {found.loss_tokens} with loss)"
    )
    if found.ignored_fields:
        report.log(
            f"{name.replace('_', ' ')}: fields that training doesn't use: {', '.join(found.ignored_fields)}", "warn"
        )
    for issue in found.issues[:5]:
        report.log(f"{name.replace('_', ' ')}: {issue.describe()}", "warn")
