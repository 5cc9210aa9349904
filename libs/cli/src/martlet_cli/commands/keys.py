"""``keys create|list|revoke``: who may use the gateway. For operators: needs the object store's own key."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from martlet_core.api_keys import OPERATOR, USER

from martlet_cli.commands.files import when
from martlet_cli.context import Context, Subparsers, command, group

if TYPE_CHECKING:
    from martlet_core.api_keys import ApiKeyStore


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    commands = group(subparsers, "keys", "make, list and revoke API keys (for operators)")
    create = command(commands, "create", _create, "make a key; its secret is shown this once")
    create.add_argument("tenant", help="whose requests it makes: files, jobs and models belong to tenants")
    create.add_argument("--name", default="", help="label for people")
    create.add_argument(
        "--operator", action="store_true", help="it may also load, unload and pin models on replicas, for all tenants"
    )
    listing = command(commands, "list", _list, "list keys, newest first, without their secrets")
    listing.add_argument("--tenant", help="only this tenant's")
    revoke = command(commands, "revoke", _revoke, "make a key useless; gateways forget it within seconds")
    revoke.add_argument("id", help="the key's id")


def _create(context: Context, arguments: argparse.Namespace) -> int:
    secret, key = _store(context).create(
        arguments.tenant, arguments.name, scope=OPERATOR if arguments.operator else USER
    )
    context.output.result(asdict(key) | {"secret": secret}, secret)
    context.output.say(f"key {key.id} of tenant {key.tenant}; keep the secret, it can't be shown again")
    return 0


def _list(context: Context, arguments: argparse.Namespace) -> int:
    rows = [
        asdict(key)
        | {
            "state": "revoked" if key.revoke_time else "works",
            "created": when(key.create_time),
            "ends with": key.hint,
        }
        for key in _store(context).list(tenant=arguments.tenant)
    ]
    context.output.table(
        rows, ("id", "tenant", "scope", "display_name", "ends with", "state", "created"), empty="no keys yet"
    )
    return 0


def _revoke(context: Context, arguments: argparse.Namespace) -> int:
    key = _store(context).revoke(arguments.id)
    context.output.result(asdict(key), f"{key.id} revoked")
    return 0


def _store(context: Context) -> ApiKeyStore:
    from martlet_cli.api_key import key_store, operator_settings  # heavy, and needed here only

    return key_store(operator_settings(context.layout))
