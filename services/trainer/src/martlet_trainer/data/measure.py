"""Counts the tokens of rows with the model's own tokenizer, in a process of its own: the service that checks submissions
imports no ML library.

    python -m martlet_trainer.data.measure     reads a question (``{base_model, datasets, data, recipe, recipe_options}``, as
                                               ``measure`` takes them) from stdin, answers in one JSON line

The answer is ``{}``, or ``{"error": ...}`` as ``MartletError.to_dict`` gives it. The rows go through the same code that the
recipe reads them with, so both judge alike. No device is touched.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from martlet_core.config import parse_config
from martlet_core.errors import MartletError
from martlet_inputs.rows.report import DataReport
from martlet_inputs.rows.validate import require_usable
from transformers.utils import logging as transformers_logging

from martlet_trainer.config import DataConfig, resolve_max_length
from martlet_trainer.data.encode import RowEncoder
from martlet_trainer.data.load import encoded_rows
from martlet_trainer.recipes import RECIPES
from martlet_trainer.recipes.method import load_method
from martlet_trainer.training.models import context_length, load_tokenizer


def measure(
    base_model: Path,
    datasets: dict[str, str],
    config: DataConfig,
    recipe: str,
    options: dict[str, Any],
    context_factor: float,
) -> None:
    """Encode data sets and keep nothing.

    Args:
        base_model: directory with the model's config and tokenizer; weights aren't needed.
        datasets: directory of each by the request's field that named it.
        config: how rows are read.
        recipe: whose rows they are.
        options: its ``recipe_options``.
        context_factor: how much longer the training makes the model's context.

    Raises:
        InvalidArgument: as the recipe would; see ``require_usable``.
    """
    tokenizer = load_tokenizer(base_model)
    encoder = RowEncoder(
        tokenizer,
        max_length=resolve_max_length(config.max_length, int(context_length(base_model, tokenizer) * context_factor)),
        on_long_rows=config.on_long_rows,
        assistant_only_loss=config.assistant_only_loss,
        last_round_only=config.last_round_only,
        system=config.system,
    )
    kind = RECIPES[recipe].row_kind(parse_config(RECIPES[recipe].options, options))
    encode = load_method(recipe).encode(encoder)
    for field, directory in datasets.items():
        report = DataReport()
        for _ in encoded_rows(Path(directory), encode, kind, report):
            pass
        require_usable(report, config.on_bad_rows, field, kind)


def main() -> int:
    """Answer one question; returns the exit code."""
    transformers_logging.set_verbosity_error()
    question: dict[str, Any] = json.load(sys.stdin)
    answer: dict[str, Any] = {}
    try:
        measure(
            Path(question["base_model"]),
            question["datasets"],
            DataConfig(**question["data"]),
            question["recipe"],
            question["recipe_options"],
            question["context_factor"],
        )
    except MartletError as error:
        answer = {"error": error.to_dict()}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
