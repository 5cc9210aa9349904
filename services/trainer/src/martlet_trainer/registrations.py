"""Base models that a tenant gives a name: checked, and kept in the model registry, where every service looks names up. Imports no ML library.

A registered model is a published whole model: an artifact, or a pinned model of a hub that each machine fetches for itself. A chat template that
goes with it is part of what the name means: for an artifact it becomes a file of an artifact of its own, which shares all other contents.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import cast

import jinja2
import jinja2.ext
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import WHOLE_MODEL_KINDS, ArtifactStore, ModelRegistry, PublishedModel
from martlet_core.errors import AlreadyExists, InvalidArgument, NotFound
from martlet_core.model_rules import (
    ARTIFACT_PREFIX,
    CHAT_TEMPLATE,
    REGISTERED_SOURCE,
    TEMPLATE_FILE,
    parse_hub_id,
)
from martlet_inputs.base_models.catalog import NAME_PATTERN, catalog
from martlet_inputs.base_models.families import chat_templates
from martlet_inputs.base_models.resolve import get_artifact

_MAX_TEMPLATE_BYTES = 64 * 1024
#: transformers' own tag, which marks the assistant's tokens.
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


class Registrations:
    """The tenants' own base models by name."""

    def __init__(self, artifacts: ArtifactStore, models: ModelRegistry) -> None:
        self._artifacts = artifacts
        self._models = models

    def register(self, tenant: str, name: str, source: str, revision: str = "", template: str = "") -> PublishedModel:
        """Give a model a name; the same again is fine.

        Args:
            tenant: whose name it will be.
            name: what jobs will write as ``base_model``.
            source: ``artifacts/<id>``, ``[hf:]org/model[@revision]`` or ``ms:org/model[@revision]``.
            revision: of a hub's model, where ``source`` doesn't have it.
            template: a chat template: Jinja, or the name of one of ``chat_templates``; empty for the model's own.

        Raises:
            InvalidArgument: a name, source or template that can't be.
            NotFound: an artifact that the tenant doesn't have.
            AlreadyExists: the name means another model.
        """
        if not NAME_PATTERN.fullmatch(name):
            raise InvalidArgument.field("name", f"is {name[:100]!r}; it must match {NAME_PATTERN.pattern}")
        if name in catalog():
            raise AlreadyExists(f"name: {name!r} is a model of the catalogue; choose another.", reason="NAME_TAKEN")
        text = _template_text(template)
        model = self._hub_model(source, revision) or self._artifact_model(tenant, source, revision)
        meaning = {**model.metadata, **({CHAT_TEMPLATE: text} if text else {})}
        if (found := self._present(tenant, name)) is not None:
            if {
                key: found.metadata[key] for key in (REGISTERED_SOURCE, CHAT_TEMPLATE) if key in found.metadata
            } == meaning:
                return found
            raise AlreadyExists(f"name: {name!r} is taken by another model; choose another.", reason="NAME_TAKEN")
        if text and model.artifact_id:
            store = cast(ContentAddressedStore, self._artifacts)
            model = replace(
                model, artifact_id=store.derive(store.get(model.artifact_id), {TEMPLATE_FILE: text.encode()}).id
            )
        return self._models.publish(replace(model, name=name, tenant=tenant, metadata=meaning))

    def get(self, tenant: str, name: str) -> PublishedModel:
        """One of the tenant's. NotFound if it registered none of that name."""
        model = self._models.get(name, tenant=tenant)
        if REGISTERED_SOURCE not in model.metadata:
            raise NotFound(
                f"{name!r} wasn't registered; a job made it.", reason="MODEL_NOT_FOUND", metadata={"model": name}
            )
        return model

    def list(self, tenant: str) -> list[PublishedModel]:
        """The tenant's, by name."""
        found = [model for model in self._models.list(tenant=tenant) if REGISTERED_SOURCE in model.metadata]
        return sorted(found, key=lambda model: model.name)

    def unregister(self, tenant: str, name: str) -> None:
        """Forget a name; files and what was trained from it stay. NotFound if the tenant registered none of that name."""
        self._models.delete(self.get(tenant, name).name, tenant=tenant)

    def _present(self, tenant: str, name: str) -> PublishedModel | None:
        try:
            return self._models.get(name, tenant=tenant)
        except NotFound:
            return None

    def _hub_model(self, source: str, revision: str) -> PublishedModel | None:
        hub = parse_hub_id(source)
        if hub is None:
            return None
        if hub.revision and revision not in ("", hub.revision):
            raise InvalidArgument.field("revision", f"is {revision!r}, and the source says {hub.revision!r}")
        pinned = hub.revision or revision
        prefix = "ms:" if hub.hub == "ms" else ""
        full = f"{prefix}{hub.repository}@{pinned}"
        if not pinned or parse_hub_id(full) is None:
            text = "is needed for a hub's model, as a commit or a tag: a name must go on meaning the same weights"
            raise InvalidArgument.field("revision", text)
        return PublishedModel("", "whole", metadata={REGISTERED_SOURCE: full})

    def _artifact_model(self, tenant: str, source: str, revision: str) -> PublishedModel:
        if not source.startswith(ARTIFACT_PREFIX):
            text = f"is {source[:200]!r}; give artifacts/<id>, org/model or ms:org/model (a directory is used as file:///… without a name)"
            raise InvalidArgument.field("source", text)
        if revision:
            raise InvalidArgument.field("revision", "is of a hub's model; an artifact never changes")
        artifact = get_artifact(self._artifacts, source, tenant, "source")
        if artifact.kind not in WHOLE_MODEL_KINDS:
            raise InvalidArgument.field("source", f"{source} is of kind {artifact.kind}; give a whole model")
        return PublishedModel("", "whole", artifact_id=artifact.id, metadata={REGISTERED_SOURCE: source})


def _template_text(template: str) -> str:
    """The template itself. Raises InvalidArgument if it is none."""
    if template in chat_templates():
        return chat_templates()[template].text
    if not template:
        return ""
    if len(template.encode()) > _MAX_TEMPLATE_BYTES:
        raise InvalidArgument.field("chat_template", f"is larger than {_MAX_TEMPLATE_BYTES} bytes")
    if "messages" not in template:
        known = ", ".join(chat_templates())
        raise InvalidArgument.field("chat_template", f"says nothing of `messages`; give Jinja, or one of: {known}")
    try:
        jinja2.Environment(extensions=[jinja2.ext.loopcontrols]).parse(_GENERATION.sub("", template))
    except jinja2.TemplateSyntaxError as error:
        raise InvalidArgument.field("chat_template", f"is no Jinja at line {error.lineno}: {error.message}") from error
    return template
