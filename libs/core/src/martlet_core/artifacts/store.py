"""ContentAddressedStore: immutable artifacts on top of any ObjectStore.

Order of writing: refs, contents, index, and the manifest last, by a conditional PUT. So a reader who finds a manifest
finds all of it; a process killed before leaves nothing that anyone sees; and of two workers that finish the same job
only one commits. Order of deleting: manifest, index, refs, contents. What a kill leaves behind, ``sweep`` removes.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar, Unpack

from martlet_core.artifacts import collector
from martlet_core.artifacts.cache import DEFAULT_MAX_BYTES, BlobCache
from martlet_core.artifacts.collector import SweepReport
from martlet_core.artifacts.layout import (
    blob_key,
    check_files,
    check_identity,
    check_path,
    decode_manifest,
    encode_manifest,
    files_in,
    index_after,
    index_key,
    index_prefix,
    manifest_key,
    parse_index_key,
    ref_key,
    sha256_of,
)
from martlet_core.artifacts.types import Artifact, ArtifactFile, ArtifactPage, ObjectStore
from martlet_core.backoff import never, stop_if
from martlet_core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from martlet_core.ids import ID_PATTERN, new_id

_CHUNK_BYTES = 1024 * 1024
_MAX_PAGE_SIZE = 1000

T = TypeVar("T")
R = TypeVar("R")


class ArtifactFields(TypedDict):
    """What is said about a new artifact; meanings as in ``Artifact``.

    ``artifact_id`` is given by those who may do the same work twice; without it a new one is made.
    """

    kind: str
    tenant: str
    artifact_id: NotRequired[str | None]
    display_name: NotRequired[str]
    labels: NotRequired[Mapping[str, str] | None]
    metadata: NotRequired[Mapping[str, Any] | None]
    source_job: NotRequired[str]
    parents: NotRequired[Sequence[str]]


class ContentAddressedStore:
    """Artifacts. Thread-safe; make one a process.

    Args:
        objects: where everything is kept.
        cache_dir: local cache that downloads go through.
        cache_max_bytes: bound of the cache.
        workers: files hashed, sent or fetched at a time.
        upload_limit_seconds: an upload that takes longer checks its contents again before it commits (see ``sweep``).
    """

    def __init__(
        self,
        objects: ObjectStore,
        cache_dir: Path,
        *,
        cache_max_bytes: int = DEFAULT_MAX_BYTES,
        workers: int = 8,
        upload_limit_seconds: float = 6 * 3600.0,
    ) -> None:
        self.objects = objects
        self.cache = BlobCache(cache_dir, cache_max_bytes)
        self._upload_limit_seconds = upload_limit_seconds
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="artifacts")
        # A large upload holds several parts in memory: two at a time.
        self._large_uploads = threading.Semaphore(2)

    def put_directory(self, directory: Path, **fields: Unpack[ArtifactFields]) -> Artifact:
        """Store the files of a directory; see ``put_files`` for the rest. Symbolic links are refused.

        Raises:
            InvalidArgument: no files, a link or special file, an unusable file name.
        """
        return self.put_files(files_in(directory), **fields)

    def put_files(self, files: Mapping[str, Path], **fields: Unpack[ArtifactFields]) -> Artifact:
        """Upload files (contents already stored are not sent again) and commit them as an artifact.

        Args:
            files: local file by its path in the artifact. They must not change meanwhile.
            fields: ``kind`` and ``tenant`` (required), and the other ``ArtifactFields``.

        Raises:
            AlreadyExists: the id is taken by other content; nothing of this upload stays.
            InvalidArgument: bad kind, tenant, id, path or metadata.
        """
        artifact_id = fields.get("artifact_id")
        draft = _draft(artifact_id or new_id(), fields)
        for path in files:
            check_path(path)
        existing = self._find(draft.id) if artifact_id else None
        found = self._map(lambda item: _describe(*item), files.items())
        draft = replace(draft, files=tuple(check_files(found)))
        encode_manifest(draft)  # refuses what isn't JSON-ready before anything is sent
        if existing is not None:
            return _same_or_raise(existing, draft)
        sources = {file.sha256: files[file.path] for file in draft.files}
        return self.commit(draft, lambda file: self._send(file, sources[file.sha256]))

    def commit(self, artifact: Artifact, send: Callable[[ArtifactFile], None]) -> Artifact:
        """Make an artifact of contents: refs, ``send`` for each content that isn't stored, index and manifest.

        Raises:
            AlreadyExists: the id is taken by other content.
        """
        contents = {file.sha256: file for file in artifact.files}
        try:
            while True:
                started = time.monotonic()
                self._map(lambda file: self._ensure(artifact.id, file, send), contents.values())
                if time.monotonic() - started < self._upload_limit_seconds:
                    break  # otherwise a sweep may have taken the refs for abandoned: write and check them again
            self.objects.put(index_key(artifact.tenant, artifact.id, artifact.kind), collector.timestamp_body())
            data, digest = encode_manifest(artifact)
            if self.objects.put_if_absent(manifest_key(artifact.id), data):
                return replace(artifact, sha256=digest)
            return _same_or_raise(self.get(artifact.id), artifact)
        except AlreadyExists:
            self._withdraw(artifact)
            raise

    def derive(self, artifact: Artifact, files: Mapping[str, bytes]) -> Artifact:
        """A new artifact with an artifact's contents but for some small files, which are put in or replaced. Nothing else is sent.

        Raises:
            NotFound: a content of ``artifact`` was deleted meanwhile.
        """
        made = {path: ArtifactFile(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in files.items()}
        by_hash = {made[path].sha256: data for path, data in files.items()}
        kept = [file for file in artifact.files if file.path not in made]

        def send(file: ArtifactFile) -> None:
            if file.sha256 not in by_hash:
                raise NotFound(f"artifacts/{artifact.id} is being deleted.", reason="ARTIFACT_NOT_FOUND")
            self.objects.put(blob_key(file.sha256), by_hash[file.sha256])

        draft = replace(artifact, id=new_id(), files=tuple(check_files([*kept, *made.values()])))
        return self.commit(replace(draft, create_time=time.time(), parents=(artifact.id,), source_job=""), send)

    def get(self, artifact_id: str, *, tenant: str | None = None) -> Artifact:
        """The artifact from its verified manifest.

        Raises:
            NotFound: there is none, or it belongs to another tenant than the given one.
            FailedPrecondition: reason ``CONTENT_MISMATCH``: the manifest is damaged.
        """
        artifact = self._find(artifact_id)
        if artifact is None or (tenant is not None and artifact.tenant != tenant):
            raise NotFound(f"There is no artifact artifacts/{artifact_id[:100]}.", reason="ARTIFACT_NOT_FOUND")
        return artifact

    def list(self, *, tenant: str, kind: str | None = None, page_size: int = 100, page_token: str = "") -> ArtifactPage:
        """A tenant's artifacts, newest first (by id, which starts with its time); ``page_token`` is the last id seen.

        Raises:
            InvalidArgument: bad token, page size, tenant or kind.
        """
        check_identity(page_token or "a", kind or "dataset", tenant)
        if not 1 <= page_size <= _MAX_PAGE_SIZE:
            raise InvalidArgument.field("page_size", f"must be 1 to {_MAX_PAGE_SIZE}; it is {page_size}.")
        after = index_after(tenant, page_token) if page_token else ""
        artifacts: list[Artifact] = []
        while True:
            # One more than asked for tells whether there is another page.
            keys = self.objects.list(index_prefix(tenant), after=after, limit=page_size + 1)
            wanted = [found_id for found_id, found_kind in map(parse_index_key, keys) if kind in (None, found_kind)]
            for artifact in self._map(self._find, wanted):
                if artifact is not None and artifact.tenant == tenant:  # otherwise: not committed, or being deleted
                    artifacts.append(artifact)
            if len(artifacts) > page_size:
                return ArtifactPage(artifacts[:page_size], artifacts[page_size - 1].id)
            if len(keys) <= page_size:
                return ArtifactPage(artifacts)
            after = keys[-1]

    def download(self, artifact_id: str, directory: Path, *, give_up: Callable[[], bool] = never) -> Artifact:
        """Put the files into a directory, replacing those of the same name.

        They are hard-linked from the local cache where possible, read-only: copy a file before you write to it. Every
        byte was checked against its sha256 when it entered the cache, and is again when an entry was changed since.

        Raises:
            NotFound: no such artifact.
            FailedPrecondition: reason ``CONTENT_MISMATCH``: a content is damaged in the store.
            GaveUp: ``give_up()`` became true; what was whole by then stays in the cache.
        """
        artifact = self.get(artifact_id)
        for parent in {(directory / file.path).parent for file in artifact.files}:
            parent.mkdir(parents=True, exist_ok=True)
        self._map(lambda file: self._place(file, directory / file.path, give_up), artifact.files)
        return artifact

    def open_file(self, artifact: Artifact, path: str) -> Iterator[bytes]:
        """Chunks of one file; the last one is given only after the whole matched its sha256.

        Raises:
            NotFound: the artifact has no such file.
            FailedPrecondition: reason ``CONTENT_MISMATCH``, in place of the last chunk.
        """
        file = next((f for f in artifact.files if f.path == path), None)
        if file is None:
            raise NotFound(f"artifacts/{artifact.id} has no file {path[:200]!r}.", reason="FILE_NOT_FOUND")
        return self._chunks(file)

    def delete(self, artifact_id: str, *, tenant: str | None = None) -> None:
        """Delete an artifact and the contents that nothing else refers to. NotFound as for ``get``."""
        artifact = self.get(artifact_id, tenant=tenant)
        self.objects.delete(manifest_key(artifact_id))
        self.objects.delete(index_key(artifact.tenant, artifact_id, artifact.kind))
        self._release(artifact_id, {file.sha256 for file in artifact.files})

    def sweep(self, older_than_seconds: float = 24 * 3600.0, *, give_up: Callable[[], bool] = never) -> SweepReport:
        """Remove what killed uploads and deletions left behind and is older; one at a time is enough, under a lease.

        Raises:
            GaveUp: ``give_up()`` became true.
        """
        return collector.sweep(self.objects, self._pool, older_than_seconds, self._upload_limit_seconds, give_up)

    def close(self) -> None:
        """End the worker threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _find(self, artifact_id: str) -> Artifact | None:
        if not ID_PATTERN.fullmatch(artifact_id):
            return None
        try:
            return decode_manifest(self.objects.get(manifest_key(artifact_id)), artifact_id)
        except NotFound:
            return None

    def _ensure(self, artifact_id: str, file: ArtifactFile, send: Callable[[ArtifactFile], None]) -> None:
        self.objects.put(ref_key(file.sha256, artifact_id), collector.timestamp_body())
        collector.wait_while_locked(self.objects, file.sha256)
        if self.objects.size(blob_key(file.sha256)) != file.size_bytes:
            send(file)

    def _send(self, file: ArtifactFile, source: Path) -> None:
        large = file.size_bytes > 16 * _CHUNK_BYTES
        with self._large_uploads if large else nullcontext():
            self.objects.upload(blob_key(file.sha256), source)

    def _withdraw(self, artifact: Artifact) -> None:
        """Take back the refs of an upload that lost to another one of the same id."""
        winner = self._find(artifact.id)
        kept = {file.sha256 for file in winner.files} if winner else set()
        if winner is None or (winner.tenant, winner.kind) != (artifact.tenant, artifact.kind):
            self.objects.delete(index_key(artifact.tenant, artifact.id, artifact.kind))
        self._release(artifact.id, {file.sha256 for file in artifact.files} - kept)

    def _release(self, artifact_id: str, hashes: Iterable[str]) -> None:
        def release(sha256: str) -> None:
            self.objects.delete(ref_key(sha256, artifact_id))
            collector.reclaim(self.objects, sha256)

        self._map(release, hashes)

    def _place(self, file: ArtifactFile, target: Path, give_up: Callable[[], bool]) -> None:
        def fetch(path: Path) -> str:
            return self.objects.download(blob_key(file.sha256), path, file.size_bytes, give_up=give_up)

        stop_if(give_up, f"downloading {file.path}")
        self.cache.place(file.sha256, file.size_bytes, target, fetch)

    def _chunks(self, file: ArtifactFile) -> Iterator[bytes]:
        digest = hashlib.sha256()
        held = b""
        with self.objects.open(blob_key(file.sha256)) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                if held:
                    yield held
                digest.update(chunk)
                held = chunk
        if digest.hexdigest() != file.sha256:
            raise FailedPrecondition(
                f"The stored content of {file.path} is damaged: its sha256 differs.", reason="CONTENT_MISMATCH"
            )
        if held:
            yield held

    def _map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Run a function on all items in the pool; the first error is raised after all have ended."""
        futures = [self._pool.submit(function, item) for item in items]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
        return [future.result() for future in futures]


def _draft(artifact_id: str, fields: ArtifactFields) -> Artifact:
    check_identity(artifact_id, fields["kind"], fields["tenant"])
    return Artifact(
        id=artifact_id,
        kind=fields["kind"],
        tenant=fields["tenant"],
        files=(),
        display_name=fields.get("display_name", ""),
        create_time=time.time(),
        labels=dict(fields.get("labels") or {}),
        metadata=dict(fields.get("metadata") or {}),
        source_job=fields.get("source_job", ""),
        parents=tuple(fields.get("parents", ())),
    )


def _describe(path: str, source: Path) -> ArtifactFile:
    return ArtifactFile(path, sha256_of(source), source.stat().st_size)


def _same_or_raise(existing: Artifact, wanted: Artifact) -> Artifact:
    """The existing artifact if it is what was wanted; else AlreadyExists."""
    if (existing.kind, existing.tenant, tuple(existing.files)) == (wanted.kind, wanted.tenant, tuple(wanted.files)):
        return existing
    raise AlreadyExists(
        f"artifacts/{wanted.id} was committed with other content; this upload came too late and is dropped.",
        reason="ARTIFACT_EXISTS",
        metadata={"artifact": wanted.id},
    )
