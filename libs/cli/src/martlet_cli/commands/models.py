"""``models``: names that answer."""

from __future__ import annotations

import argparse

from martlet_cli.commands.files import when
from martlet_cli.context import Context, Subparsers, command
from martlet_cli.gateway import translated


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    command(subparsers, "models", _models, "list the models that answer to this key")


def _models(context: Context, arguments: argparse.Namespace) -> int:
    with translated():
        models = [model.model_dump() for model in context.gateway.openai.models.list().data]
    rows = [model | (model.get("martlet") or {}) | {"created": when(model["created"])} for model in models]
    if context.output.as_json:
        context.output.json(models)
    else:
        context.output.table(
            rows, ("id", "kind", "task", "base_model", "owned_by", "created"), empty="no model answers yet"
        )
    return 0
