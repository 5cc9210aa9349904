"""Publishing a job's model under a name that an earlier attempt may have taken."""

from __future__ import annotations

from martlet_core.artifacts.types import ModelRegistry, PublishedModel
from martlet_core.errors import AlreadyExists, NotFound


def publish_model(models: ModelRegistry, model: PublishedModel) -> None:
    """Make the name stand for this model. Only for the holder of the job's lease, or from the record of a job that
    SUCCEEDED: a name that an attempt without either has taken is replaced.
    """
    try:
        models.publish(model)
    except AlreadyExists:
        unpublish_model(models, models.get(model.name, tenant=model.tenant))
        models.publish(model)


def unpublish_model(models: ModelRegistry, model: PublishedModel) -> None:
    """Forget the name if it stands for this model's artifact; no error if it doesn't, or isn't there."""
    try:
        if models.get(model.name, tenant=model.tenant).artifact_id == model.artifact_id:
            models.delete(model.name, tenant=model.tenant)
    except NotFound:
        return
