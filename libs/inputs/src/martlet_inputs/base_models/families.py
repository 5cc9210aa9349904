"""What is to be known of families of models, and chat templates for base models without one. Data: families.toml. Imports no ML library."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from martlet_core.config import Config, parse_config
from martlet_core.errors import FailedPrecondition

_PACKAGE = "martlet_inputs.base_models"


class _Template(Config):
    needs: tuple[str, ...] = ()


class Family(Config):
    """What is special about a family.

    Attributes:
        template: name of the chat template that its instruct models were taught; empty where none is known.
        targets: modules that adapters go into in the place of ``all-linear``.
        keep_out: regular expressions of whole names of modules that ``all-linear`` would choose and that must stay as they are.
        input_gradients: whether its layers pass gradients only to an input that wants some, which frozen embeddings don't.
        why: of all but ``template``.
    """

    template: str = ""
    targets: tuple[str, ...] = ()
    keep_out: tuple[str, ...] = ()
    input_gradients: bool = False
    why: str = ""


class _Families(Config):
    templates: dict[str, _Template]
    families: dict[str, Family]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template by name.

    Attributes:
        name: as users write it.
        text: Jinja.
        needs: tokens that the tokenizer must have.
    """

    name: str
    text: str
    needs: tuple[str, ...]


def family_of(model_type: str) -> Family:
    """What is known of a family by ``model_type`` of config.json; of a family that isn't known, nothing."""
    return _data().families.get(model_type, Family())


def known_families() -> Mapping[str, Family]:
    """All families of which something is known."""
    return _data().families


@cache
def chat_templates() -> Mapping[str, ChatTemplate]:
    """The chat templates by name."""
    folder = resources.files(_PACKAGE).joinpath("templates")
    return {
        name: ChatTemplate(name, folder.joinpath(f"{name}.jinja").read_text(encoding="utf-8"), found.needs)
        for name, found in _data().templates.items()
    }


@cache
def _data() -> _Families:
    """Raises FailedPrecondition if the data names a template that isn't there, or a rule without its reason."""
    text = resources.files(_PACKAGE).joinpath("families.toml").read_text(encoding="utf-8")
    data = parse_config(_Families, tomllib.loads(text), "families.toml")
    for name, family in data.families.items():
        if family.template and family.template not in data.templates:
            raise FailedPrecondition(f"families.toml: {name} names a template {family.template!r}, which isn't there.")
        if (family.targets or family.keep_out or family.input_gradients) and not family.why:
            raise FailedPrecondition(f"families.toml: {name} has a rule and doesn't say why.")
    return data
