"""Frees contents that nothing refers to, without ever taking one that an upload is about to rely on.

Uploader and collector could cross: one finds a blob stored and doesn't send it, the other finds no refs and deletes it.
So

    uploader:   write ref  ->  wait while the lock exists  ->  send the blob unless it is there
    collector:  take lock  ->  list refs; none?            ->  delete the blob  ->  give the lock back

Whichever order the four first steps take on a strongly consistent store, either the collector sees the ref, or the
uploader sees the lock (or comes after it was given back, and then sees that the blob is gone). A collector deletes only
in the first seconds after taking the lock; a lock much older than that is a dead collector's.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from martlet_core.artifacts.layout import (
    blob_key,
    decode_manifest,
    lock_key,
    manifest_key,
    parse_index_key,
    ref_key,
)
from martlet_core.artifacts.types import ObjectStore
from martlet_core.backoff import never, stop_if
from martlet_core.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable

log = logging.getLogger(__name__)

_DELETE_WITHIN_SECONDS = 15.0
_LOCK_DEAD_SECONDS = 120.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class SweepReport:
    """What a sweep removed, in numbers of objects."""

    refs: int = 0
    blobs: int = 0
    index_entries: int = 0
    locks: int = 0


def timestamp_body() -> bytes:
    """Body of refs, locks and index entries: when they were written, in seconds since the epoch."""
    return json.dumps({"time": time.time()}).encode()


def wait_while_locked(objects: ObjectStore, sha256: str) -> None:
    """Uploader's side: return when no collector is at work on a content. Unavailable if its lock doesn't go away."""
    deadline = time.monotonic() + _LOCK_DEAD_SECONDS
    while (age := _age_seconds(objects, lock_key(sha256))) is not None and age < _LOCK_DEAD_SECONDS:
        if time.monotonic() > deadline:
            raise Unavailable(f"The content {sha256} stays locked; try again.", retry_after_seconds=30)
        time.sleep(_POLL_SECONDS)


def reclaim(objects: ObjectStore, sha256: str) -> bool:
    """Delete a content if nothing refers to it; says whether it was deleted."""
    lock = lock_key(sha256)
    started = time.monotonic()
    if not objects.put_if_absent(lock, timestamp_body()):
        return False  # another collector is at it
    try:
        if objects.list(f"refs/{sha256}/", limit=1):
            return False
        if time.monotonic() - started > _DELETE_WITHIN_SECONDS:
            return False  # too slow to be sure; a sweep will come by
        objects.delete(blob_key(sha256))
        return True
    finally:
        objects.delete(lock)


def sweep(
    objects: ObjectStore,
    pool: ThreadPoolExecutor,
    older_than_seconds: float,
    upload_limit_seconds: float,
    give_up: Callable[[], bool] = never,
) -> SweepReport:
    """Remove what killed processes left: refs and index entries without a manifest, contents without refs, dead locks.

    Two sweeps at a time do no harm, but the same work: take a lease first.

    Raises:
        InvalidArgument: ``older_than_seconds`` is so short that running uploads could be hit.
        GaveUp: ``give_up()`` became true; what was removed until then is gone.
    """
    if older_than_seconds < 2 * upload_limit_seconds:
        raise InvalidArgument.field(
            "older_than_seconds", f"must be at least {2 * upload_limit_seconds:.0f}, or running uploads could be hit."
        )
    locks = _sweep_old(objects, "locks/blobs/", _LOCK_DEAD_SECONDS)
    refs = _sweep_refs(objects, older_than_seconds, give_up)
    kept = {key.split("/")[1] for key in every_key(objects, "refs/", give_up)}
    stored = (key.rsplit("/", 1)[1] for key in every_key(objects, blob_key(""), give_up))
    loose = [sha256 for sha256 in stored if sha256 not in kept]

    def reclaim_one(sha256: str) -> bool:
        stop_if(give_up, "sweeping contents")
        return reclaim(objects, sha256)

    blobs = sum(pool.map(reclaim_one, loose))
    index_entries = _sweep_index(objects, older_than_seconds, give_up)
    return SweepReport(refs, blobs, index_entries, locks)


def every_key(objects: ObjectStore, prefix: str, give_up: Callable[[], bool] = never) -> Iterator[str]:
    """All keys with a prefix, page by page. GaveUp, before any of them, once ``give_up()`` is true."""
    after = ""
    while keys := objects.list(prefix, after=after, limit=1000):
        for key in keys:
            stop_if(give_up, f"going through {prefix}")
            yield key
        after = keys[-1]


def _sweep_refs(objects: ObjectStore, older_than_seconds: float, give_up: Callable[[], bool]) -> int:
    hashes_of: dict[str, set[str]] = {}
    for key in every_key(objects, "refs/", give_up):
        _, sha256, artifact_id = key.split("/")
        hashes_of.setdefault(artifact_id, set()).add(sha256)
    removed = 0
    for artifact_id, hashes in hashes_of.items():
        stop_if(give_up, "sweeping refs")
        for sha256 in hashes - _hashes_to_keep(objects, artifact_id, hashes):
            key = ref_key(sha256, artifact_id)
            if _is_older(objects, key, older_than_seconds):
                objects.delete(key)
                removed += 1
    return removed


def _sweep_index(objects: ObjectStore, older_than_seconds: float, give_up: Callable[[], bool]) -> int:
    removed = 0
    for key in every_key(objects, "tenants/", give_up):
        artifact_id, _ = parse_index_key(key)
        if objects.size(manifest_key(artifact_id)) is None and _is_older(objects, key, older_than_seconds):
            objects.delete(key)
            removed += 1
    return removed


def _sweep_old(objects: ObjectStore, prefix: str, older_than_seconds: float) -> int:
    old = [key for key in every_key(objects, prefix) if _is_older(objects, key, older_than_seconds)]
    for key in old:
        objects.delete(key)
    return len(old)


def _hashes_to_keep(objects: ObjectStore, artifact_id: str, hashes: set[str]) -> set[str]:
    """Contents that an artifact needs; all of them where its manifest is damaged, since someone may yet mend that."""
    try:
        data = objects.get(manifest_key(artifact_id))
    except NotFound:
        return set()
    try:
        return {file.sha256 for file in decode_manifest(data, artifact_id).files}
    except FailedPrecondition as error:
        log.error("The sweep leaves what artifacts/%s refers to: %s", artifact_id, error)
        return hashes


def _is_older(objects: ObjectStore, key: str, seconds: float) -> bool:
    age = _age_seconds(objects, key)
    return age is not None and age > seconds


def _age_seconds(objects: ObjectStore, key: str) -> float | None:
    """Age by the time written inside; None if the key isn't there."""
    try:
        return time.time() - float(json.loads(objects.get(key))["time"])
    except NotFound:
        return None
