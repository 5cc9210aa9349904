"""What the names in a job's spec stand for now: whole models, adapters, artifacts. Imports no ML library.

Who asks is a tenant, and what another tenant owns doesn't exist for it.
"""

from __future__ import annotations

from pathlib import Path

from martlet_core.artifacts.types import WHOLE_MODEL_KINDS, Artifact, ArtifactStore, ModelRegistry, PublishedModel
from martlet_core.errors import InvalidArgument, NotFound
from martlet_core.model_rules import ARTIFACT_PREFIX, CHAT_TEMPLATE, REGISTERED_SOURCE

from martlet_inputs.base_models.catalog import NAME_PATTERN, Reference, catalog, parse_reference


def resolve_base_model(
    base_model: str,
    tenant: str,
    artifacts: ArtifactStore,
    models: ModelRegistry,
    model_roots: tuple[Path, ...],
    *,
    field: str = "spec.base_model",
) -> Reference:
    """What a base model's name stands for now: a published or registered name becomes what is behind it.

    Raises:
        NotFound: nothing of that name that the tenant may use; the message and metadata name close matches.
        InvalidArgument: an adapter, or an artifact that is no model.
        PermissionDenied: a local path outside of ``model_roots``.
    """
    registered = _registered(base_model, tenant, models)
    reference = registered or parse_reference(base_model, model_roots)
    if reference.kind == "published":
        model = get_model(models, base_model, tenant, field)
        if model.kind == "adapter":
            raise InvalidArgument.field(field, f"{base_model} is an adapter; a whole model is needed here")
        reference = Reference("artifact", model.artifact_id)
    if reference.kind == "artifact":
        artifact = get_artifact(artifacts, ARTIFACT_PREFIX + reference.value, tenant, field)
        if artifact.kind not in WHOLE_MODEL_KINDS:
            raise InvalidArgument.field(field, f"{base_model} is of kind {artifact.kind}; give a whole model")
    return reference


def _registered(name: str, tenant: str, models: ModelRegistry) -> Reference | None:
    """What a name that a tenant gave stands for; None for names of other forms, and those that it didn't give."""
    if not NAME_PATTERN.fullmatch(name) or name in catalog():
        return None
    try:
        metadata = (model := models.get(name, tenant=tenant)).metadata
    except NotFound:
        return None
    if REGISTERED_SOURCE not in metadata:
        return None
    if model.artifact_id:
        return Reference("artifact", model.artifact_id)
    return Reference("hub", str(metadata[REGISTERED_SOURCE]), str(metadata.get(CHAT_TEMPLATE, "")))


def resolve_adapter(
    adapter: str, tenant: str, artifacts: ArtifactStore, models: ModelRegistry, *, field: str = "spec.adapter"
) -> PublishedModel:
    """The adapter that a name or ``artifacts/<id>`` stands for, with its base model.

    Raises:
        NotFound: nothing of that name that the tenant may use.
        InvalidArgument: it is no adapter, or doesn't say what its base model is.
    """
    if not adapter.startswith(ARTIFACT_PREFIX):
        model = get_model(models, adapter, tenant, field)
        if model.kind != "adapter":
            raise InvalidArgument.field(field, f"{adapter} is a whole model already; there is nothing to merge")
        return model
    artifact = get_artifact(artifacts, adapter, tenant, field)
    base_model = artifact.metadata.get("base_model", "")
    if artifact.kind == "checkpoint" and not base_model:
        text = f"{adapter} is a checkpoint; give its model's name, which the job's checkpoints list (fine_tuned_model)"
        raise InvalidArgument.field(field, text)
    if artifact.kind not in ("adapter", "checkpoint") or not base_model:
        raise InvalidArgument.field(field, f"{adapter} is no adapter that names its base model")
    return PublishedModel(
        adapter,
        "adapter",
        tenant,
        artifact.id,
        base_model=base_model,
        lora_rank=int(artifact.metadata.get("lora_rank", 0)),
        source_job=artifact.source_job,
        metadata={key: artifact.metadata[key] for key in ("task", "tuner") if key in artifact.metadata},
    )


def get_artifact(artifacts: ArtifactStore, name: str, tenant: str, field: str) -> Artifact:
    """The artifact of ``artifacts/<id>``. NotFound names the field."""
    try:
        return artifacts.get(name.removeprefix(ARTIFACT_PREFIX), tenant=tenant)
    except (NotFound, InvalidArgument) as error:
        raise NotFound(
            f"{field}: {name} doesn't exist.", reason="ARTIFACT_NOT_FOUND", metadata={"name": name}
        ) from error


def get_model(models: ModelRegistry, name: str, tenant: str, field: str) -> PublishedModel:
    try:
        return models.get(name, tenant=tenant)
    except NotFound as error:
        raise NotFound(f"{field}: {error.message}", reason=error.reason, metadata=error.metadata) from error
