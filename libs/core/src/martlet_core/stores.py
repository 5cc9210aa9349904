"""Opening everything that keeps truth, from a service's settings."""

from __future__ import annotations

from dataclasses import dataclass

from martlet_core.api_keys import ApiKeyStore
from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import ArtifactStore, ModelRegistry, ObjectStore
from martlet_core.job_store import RedisJobStore
from martlet_core.jobs import JobStore
from martlet_core.models import ObjectModelRegistry
from martlet_core.settings import CoreSettings


@dataclass(frozen=True)
class Stores:
    """The stores of a deployment; made once a process, in ``__main__``, and passed down."""

    jobs: JobStore
    objects: ObjectStore
    artifacts: ArtifactStore
    models: ModelRegistry

    @property
    def api_keys(self) -> ApiKeyStore:
        """The API keys, kept among the objects."""
        return ApiKeyStore(self.objects)


def open_stores(settings: CoreSettings) -> Stores:
    """Connect to the job store and the object store, and check that both can be relied on.

    Raises:
        Unavailable: one of them doesn't answer.
        FailedPrecondition: the object store refuses our key or ignores conditional writes.
    """
    jobs = RedisJobStore.from_url(settings.redis_url)
    jobs.ping()
    objects = S3ObjectStore.from_settings(settings)
    objects.prepare()
    artifacts = ContentAddressedStore(objects, settings.cache_dir / "blobs")
    return Stores(jobs, objects, artifacts, ObjectModelRegistry(objects))
