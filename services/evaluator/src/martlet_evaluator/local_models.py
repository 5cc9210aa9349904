"""What the model of an in-process target stands for: a whole model, or an adapter and the whole model under it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from martlet_core.errors import FailedPrecondition
from martlet_core.model_rules import ARTIFACT_PREFIX, BOTTLENECKS, PUBLISHED_PREFIX
from martlet_core.stores import Stores
from martlet_inputs.base_models.catalog import Reference
from martlet_inputs.base_models.resolve import get_artifact, get_model, resolve_adapter, resolve_base_model


@dataclass(frozen=True)
class LocalModel:
    """Attributes:
    reference: the whole model.
    adapter: id of the adapter's artifact; empty for none.
    """

    reference: Reference
    adapter: str = ""


def resolve_local_model(name: str, tenant: str, stores: Stores, roots: tuple[Path, ...], *, field: str) -> LocalModel:
    """Look a model up for a tenant.

    Raises:
        As ``resolve_base_model``, and FailedPrecondition for an adapter that peft can't load.
    """
    artifacts, models = stores.artifacts, stores.models
    is_adapter = (name.startswith(PUBLISHED_PREFIX) and get_model(models, name, tenant, field).kind == "adapter") or (
        name.startswith(ARTIFACT_PREFIX)
        and get_artifact(artifacts, name, tenant, field).kind in ("adapter", "checkpoint")
    )
    if not is_adapter:
        return LocalModel(resolve_base_model(name, tenant, artifacts, models, roots, field=field))
    adapter = resolve_adapter(name, tenant, artifacts, models, field=field)
    if adapter.metadata.get("tuner") == BOTTLENECKS:
        raise FailedPrecondition(
            f"{field}: {name} is bottlenecks, layers of the trainer's own, which only the trainer can load. Evaluate an adapter of another"
            " kind, or a whole model.",
            reason="ADAPTER_NOT_SERVED",
            metadata={"model": name},
        )
    base = resolve_base_model(adapter.base_model, tenant, artifacts, models, roots, field=field)
    return LocalModel(base, adapter.artifact_id)
