"""Once a day, one process of a deployment removes what killed processes left in the object store."""

from __future__ import annotations

import logging

from martlet_core.artifacts.collector import SweepReport
from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.ids import new_id
from martlet_core.jobs import JobStore

log = logging.getLogger(__name__)

LEASE = "housekeeping"
EVERY_SECONDS = 24 * 3600.0


def sweep_if_due(jobs: JobStore, artifacts: ContentAddressedStore) -> SweepReport | None:
    """Sweep the object store unless someone did so within a day. May take minutes: call it in a thread of its own.

    The lease is taken under a name of its own each time and not given back, so it says when the last sweep was.

    Returns:
        What was removed; None if it isn't due.

    Raises:
        Unavailable: a store doesn't answer.
    """
    if not jobs.acquire_lease(LEASE, new_id(), EVERY_SECONDS):
        return None
    report = artifacts.sweep()
    aborted = 0
    if isinstance(artifacts.objects, S3ObjectStore):
        aborted = artifacts.objects.abort_stale_uploads()
    log.info(
        "swept the object store",
        extra={
            "refs": report.refs,
            "blobs": report.blobs,
            "index_entries": report.index_entries,
            "locks": report.locks,
            "multipart_uploads": aborted,
        },
    )
    return report
