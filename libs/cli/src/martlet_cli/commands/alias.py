"""``alias list|show|set|rollback|delete``: names that may be moved from one model to another, and back."""

from __future__ import annotations

import argparse
from datetime import datetime
from typing import Any

from martlet_cli.commands.files import when
from martlet_cli.context import Context, Subparsers, command, group

_ALIASES = "/aliases"


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    commands = group(subparsers, "alias", "served names that may be moved from one model to another, and back")
    command(commands, "list", _list, "list aliases and what they mean")
    command(commands, "show", _show, "show an alias and what it meant").add_argument("alias")
    put = command(commands, "set", _set, "give a name to a model; it moves at once")
    put.add_argument("alias", help="the name")
    put.add_argument("model", help="the model that it is to mean")
    command(commands, "rollback", _roll_back, "give a name back to the model before").add_argument("alias")
    command(commands, "delete", _delete, "forget an alias; the models stay").add_argument("alias")


def _list(context: Context, arguments: argparse.Namespace) -> int:
    found = context.gateway.call("GET", _ALIASES)["data"]
    rows = [alias | {"alias": alias["id"], "moved": _when(alias.get("update_time"))} for alias in found]
    context.output.table(
        rows, ("alias", "model", "moved"), empty="no aliases yet; `martlet alias set NAME MODEL` makes one"
    )
    return 0


def _show(context: Context, arguments: argparse.Namespace) -> int:
    alias = context.gateway.call("GET", f"{_ALIASES}/{arguments.alias}")
    if context.output.as_json:
        context.output.json(alias)
        return 0
    rows = [move | {"moved": _when(move.get("move_time"))} for move in alias["moves"]]
    context.output.table(rows, ("moved", "model", "reason", "run"))
    return 0


def _set(context: Context, arguments: argparse.Namespace) -> int:
    return _said(context, context.gateway.call("PUT", f"{_ALIASES}/{arguments.alias}", json={"model": arguments.model}))


def _roll_back(context: Context, arguments: argparse.Namespace) -> int:
    return _said(context, context.gateway.call("POST", f"{_ALIASES}/{arguments.alias}/rollback"))


def _delete(context: Context, arguments: argparse.Namespace) -> int:
    gone = context.gateway.call("DELETE", f"{_ALIASES}/{arguments.alias}")
    context.output.result(gone, f"{gone['id']}: deleted")
    return 0


def _said(context: Context, alias: dict[str, Any]) -> int:
    context.output.result(alias, f"{alias['id']} -> {alias['model']}")
    return 0


def _when(text: str | None) -> str:
    return when(datetime.fromisoformat(text).timestamp()) if text else ""
