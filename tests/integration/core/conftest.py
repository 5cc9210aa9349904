"""The real object store, prepared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.settings import CoreSettings


@pytest.fixture(scope="session")
def s3_store(s3_settings: dict[str, str]) -> Iterator[S3ObjectStore]:
    """S3ObjectStore on the session's SeaweedFS."""
    store = S3ObjectStore.from_settings(CoreSettings(**s3_settings))  # type: ignore[arg-type]
    store.prepare()
    yield store
    store.close()
