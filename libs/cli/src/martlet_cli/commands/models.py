"""``models list|show|register|unregister|push``: names that answer, names that a tenant gives to base models, and the way out to a hub."""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

from martlet_core.errors import FailedPrecondition, Internal, InvalidArgument, error_from_dict

from martlet_cli.commands.artifacts import download_files
from martlet_cli.commands.files import when
from martlet_cli.context import Context, Subparsers, command, group
from martlet_cli.gateway import translated

_MODELS = "/models"
_TOKEN = "The token is the variable HF_TOKEN; it is stored nowhere."


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
    push = command(
        commands, "push", _push, "put a model or an adapter onto Hugging Face, with a model card", epilog=_TOKEN
    )
    push.add_argument("model", help="a fine-tuned, merged or registered model, or artifacts/ID")
    push.add_argument("--to", required=True, metavar="hf:ORG/NAME", help="the repository; made if it isn't there")
    push.add_argument("--public", action="store_true", help="a repository that is made can be read by everyone")


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
        context.output.table(
            rows, ("id", "kind", "task", "base_model", "owned_by", "created"), empty="no model answers yet"
        )
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


def _push(context: Context, arguments: argparse.Namespace) -> int:
    python = context.layout.python("trainer")
    if not python.is_file():
        text = "the trainer's environment, which has Hugging Face's library, isn't here; make it with `martlet env sync trainer`"
        raise FailedPrecondition(text, reason="ENVIRONMENT_MISSING")
    with tempfile.TemporaryDirectory(prefix="martlet-push-") as scratch:
        directory = Path(scratch) / "model"
        download_files(context, _artifact(context, arguments.model), directory)
        if not (directory / "README.md").exists():
            name = quote(arguments.model, safe="/")
            (directory / "README.md").write_text(context.gateway.text(f"/lineage/{name}?form=card"), encoding="utf-8")
        command = [str(python), "-m", "martlet_core.hub_push", str(directory), arguments.to]
        command += ["--public"] if arguments.public else []
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=False
        )  # HF_TOKEN is inherited, never an argument
    if done.returncode:
        raise Internal(f"pushing ended with {done.returncode}; what it said is above")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise error_from_dict(answer["error"])
    context.output.result(answer, f"{arguments.model} is at {answer['commit']}")
    return 0


def _artifact(context: Context, model: str) -> str:
    """The artifact with a model's files.

    Raises:
        FailedPrecondition: it has none: a base model, or one that lies on a hub already.
    """
    if model.startswith("artifacts/"):
        return model
    with translated():
        found = context.gateway.openai.models.retrieve(model).model_dump()
    artifact = (found.get("martlet") or {}).get("artifact")
    if not artifact:
        raise FailedPrecondition(f"{model} has no files of its own in this deployment, so there is nothing to push")
    return str(artifact)


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
