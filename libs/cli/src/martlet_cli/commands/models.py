"""``models list|show|register|unregister``: names that answer, and names that a tenant gives to base models."""

from __future__ import annotations

import argparse
from pathlib import Path
from urllib.parse import quote

from martlet_core.errors import InvalidArgument

from martlet_cli.commands.files import when
from martlet_cli.context import Context, Subparsers, command, group
from martlet_cli.gateway import translated

_MODELS = "/models"


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    commands = group(subparsers, "models", "models that answer to this key, and base models that you give a name")
    listing = command(commands, "list", _list, "list the models that answer to this key")
    listing.add_argument("--registered", action="store_true", help="only base models that you registered")
    command(commands, "show", _show, "show a model").add_argument("model")
    register = command(commands, "register", _register, "give a base model a name that jobs can use")
    register.add_argument("name", help="the name")
    register.add_argument(
        "--source", required=True, help="artifacts/ID, org/model of Hugging Face, or ms:org/model of ModelScope"
    )
    register.add_argument(
        "--revision", default="", help="commit or tag of a hub's model; needed unless the source has it"
    )
    register.add_argument(
        "--chat-template", default="", metavar="FILE", help="Jinja file, or chatml, llama3, gemma, mistral or plain"
    )
    command(commands, "unregister", _unregister, "forget a name; the files stay").add_argument("name")


def _list(context: Context, arguments: argparse.Namespace) -> int:
    if arguments.registered:
        found = context.gateway.call("GET", _MODELS)["data"]
        if context.output.as_json:
            context.output.json(found)
            return 0
        rows = [model | {"chat_template": _first_line(model.get("chat_template", ""))} for model in found]
        empty = "nothing registered; `martlet models register NAME --source ...` does it"
        context.output.table(rows, ("id", "source", "chat_template", "create_time"), empty=empty)
        return 0
    with translated():
        models = [model.model_dump() for model in context.gateway.openai.models.list().data]
    rows = [model | (model.get("martlet") or {}) | {"created": when(model["created"])} for model in models]
    if context.output.as_json:
        context.output.json(models)
    else:
        context.output.table(rows, ("id", "kind", "base_model", "owned_by", "created"), empty="no model answers yet")
    return 0


def _show(context: Context, arguments: argparse.Namespace) -> int:
    with translated():
        model = context.gateway.openai.models.retrieve(arguments.model).model_dump()
    if context.output.as_json:
        context.output.json(model)
        return 0
    facts = {name: value for name, value in (model.get("martlet") or {}).items() if value not in (None, [], "")}
    context.output.facts({"id": model["id"], "owned_by": model["owned_by"], **facts})
    return 0


def _register(context: Context, arguments: argparse.Namespace) -> int:
    body = {
        "name": arguments.name,
        "source": arguments.source,
        "revision": arguments.revision,
        "chat_template": _template(arguments.chat_template),
    }
    model = context.gateway.call("POST", _MODELS, json=body)
    context.output.result(model, f"{model['id']} is {model['source']}")
    return 0


def _unregister(context: Context, arguments: argparse.Namespace) -> int:
    gone = context.gateway.call("DELETE", f"{_MODELS}/{quote(arguments.name, safe='')}")
    context.output.result(gone, f"{gone['id']}: forgotten")
    return 0


def _template(given: str) -> str:
    """A file's text; a name without a dot or slash goes as it is, and the platform says whether it knows it."""
    if not given or not {".", "/"} & set(given):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument.field("--chat-template", f"{given} can't be read: {error}") from error


def _first_line(text: str) -> str:
    return text.splitlines()[0][:40] if text else ""
