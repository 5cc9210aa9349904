"""Artifacts brought by clients that have no key to the object store.

Contents are PUT to a staging place that no one reads, and become content-addressed only after their hash was checked:
whoever could PUT to ``blobs/sha256/<hash>`` could put something else there. A content counts as "already stored" only
if an artifact of the same tenant has it: knowing a hash must not be enough to read what it stands for.

    artifact-uploads/<tenant>/<id>.json     what was announced
    artifact-uploads/<tenant>/<id>/<n>      content of its n-th file
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from martlet_core.artifacts.collector import every_key
from martlet_core.artifacts.layout import blob_key, check_files
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import Artifact, ArtifactFile
from martlet_core.backoff import never
from martlet_core.errors import FailedPrecondition, NotFound
from martlet_core.ids import ID_PATTERN, new_id

from martlet_gateway.errors import too_large

PREFIX = "artifactUploads/"
_CHUNK = 1024 * 1024
_COMMIT_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class AnnouncedArtifact:
    """An artifact to be. ``staged`` lists the indexes of the files that have to be sent."""

    id: str
    kind: str
    files: Sequence[Mapping[str, Any]]
    staged: Sequence[int]
    expires_at: float
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    parents: Sequence[str] = ()


class ArtifactUploads:
    """Announces and commits artifacts. Methods block.

    Args:
        artifacts: where they end up.
        scratch: local directory for contents while they are checked.
        ttl_seconds: life of the URLs, and of what was announced.
        max_bytes: largest artifact, all files together.
    """

    def __init__(self, artifacts: ContentAddressedStore, scratch: Path, *, ttl_seconds: float, max_bytes: int) -> None:
        self._artifacts = artifacts
        self._objects = artifacts.objects
        self._scratch = scratch
        self._ttl_seconds = ttl_seconds
        self._max_bytes = max_bytes

    def announce(self, tenant: str, artifact: Artifact) -> tuple[AnnouncedArtifact, dict[str, str]]:
        """Note what is to come; returns it and a URL for each file to send, by path.

        Raises:
            InvalidArgument: no files, or bad paths or hashes.
            ResourceExhausted: it is larger than artifacts may be.
            NotFound: a parent that the tenant doesn't have.
        """
        files = check_files(artifact.files)
        if sum(file.size_bytes for file in files) > self._max_bytes:
            remedy = "Make several of it, or have the operator raise MARTLET_MAX_UPLOAD_BYTES."
            raise too_large("The artifact", self._max_bytes, remedy, param="artifact.files")
        for parent in artifact.parents:
            self._artifacts.get(parent, tenant=tenant)
        known: dict[str, bool] = {}
        for file in files:
            known.setdefault(file.sha256, self._has(tenant, file))
        announced = AnnouncedArtifact(
            id=new_id(),
            kind=artifact.kind,
            files=[asdict(file) for file in files],
            staged=[index for index, file in enumerate(files) if not known[file.sha256]],
            expires_at=time.time() + self._ttl_seconds,
            display_name=artifact.display_name,
            labels=dict(artifact.labels),
            metadata=dict(artifact.metadata),
            parents=list(artifact.parents),
        )
        record = orjson.dumps(asdict(announced))
        self._objects.put(_record_key(tenant, announced.id), record, content_type="application/json")
        urls = {
            files[index].path: self._objects.presign_put(
                _stage_key(tenant, announced.id, index), int(self._ttl_seconds)
            )
            for index in announced.staged
        }
        return announced, urls

    def commit(self, tenant: str, name: str) -> Artifact:
        """Check what was sent and make the artifact. Doing so again returns the same one.

        Raises:
            NotFound: no such upload of this tenant.
            FailedPrecondition: its time is over, or a file is missing or differs from what was announced.
        """
        upload_id = name.removeprefix(PREFIX)
        if not name.startswith(PREFIX) or not ID_PATTERN.fullmatch(upload_id):
            raise _no_such_upload(name)
        try:
            return self._artifacts.get(upload_id, tenant=tenant)
        except NotFound:
            announced = self._announced(tenant, upload_id)
        if announced.expires_at <= time.time():
            raise FailedPrecondition(f"{name} has expired; announce the artifact again.", reason="UPLOAD_EXPIRED")
        files = [ArtifactFile(**item) for item in announced.files]
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch, prefix="artifact-") as directory:
            checked: dict[str, Path] = {}
            for index in announced.staged:
                path = Path(directory, str(index))
                self._fetch(tenant, upload_id, index, files[index], path)
                checked[files[index].sha256] = path
            artifact = self._artifacts.commit(
                Artifact(
                    id=upload_id,
                    kind=announced.kind,
                    tenant=tenant,
                    files=tuple(files),
                    display_name=announced.display_name,
                    create_time=time.time(),
                    labels=announced.labels,
                    metadata=announced.metadata,
                    parents=tuple(announced.parents),
                ),
                lambda file: self._send(file, checked),
            )
        self._forget(tenant, announced)
        return artifact

    def sweep(self, *, give_up: Callable[[], bool] = never) -> int:
        """Forget the announcements of all tenants whose time was over a day ago, with what was sent; returns how many.

        The day is for commits that are under way.
        """
        forgotten = 0
        for key in every_key(self._objects, "artifact-uploads/", give_up):
            _, tenant, *name = key.split("/")
            if len(name) > 1:
                continue  # a content
            upload_id = name[0].removesuffix(".json")
            try:
                announced = self._announced(tenant, upload_id)
            except NotFound:
                continue  # committed meanwhile
            if announced.expires_at + _COMMIT_SECONDS <= time.time():
                self._forget(tenant, announced)
                forgotten += 1
        return forgotten

    def _forget(self, tenant: str, announced: AnnouncedArtifact) -> None:
        for index in announced.staged:
            self._objects.delete(_stage_key(tenant, announced.id, index))
        self._objects.delete(_record_key(tenant, announced.id))

    def _send(self, file: ArtifactFile, checked: Mapping[str, Path]) -> None:
        path = checked.get(file.sha256)
        if path is None:  # it was stored when the upload was announced, and was deleted since
            raise FailedPrecondition(
                f"{file.path}: its content is no longer stored; announce the artifact again.", reason="CONTENT_MISSING"
            )
        self._artifacts.objects.upload(blob_key(file.sha256), path)

    def _fetch(self, tenant: str, upload_id: str, index: int, file: ArtifactFile, path: Path) -> None:
        key = _stage_key(tenant, upload_id, index)
        size = self._objects.size(key)
        if size is None:
            raise FailedPrecondition(
                f"{file.path} was not sent.", reason="CONTENT_MISSING", metadata={"path": file.path}
            )
        if size != file.size_bytes:
            raise _mismatch(file, f"has {size} bytes, {file.size_bytes} were announced")
        self._objects.download(key, path, size)
        digest = hashlib.sha256()
        with open(path, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != file.sha256:
            raise _mismatch(file, f"has sha256 {digest.hexdigest()}, {file.sha256} was announced")

    def _announced(self, tenant: str, upload_id: str) -> AnnouncedArtifact:
        try:
            return AnnouncedArtifact(**orjson.loads(self._objects.get(_record_key(tenant, upload_id))))
        except NotFound:
            raise _no_such_upload(PREFIX + upload_id) from None

    def _has(self, tenant: str, file: ArtifactFile) -> bool:
        """True if an artifact of the tenant has this content."""
        prefix = f"refs/{file.sha256}/"
        for key in self._objects.list(prefix, limit=100):
            try:
                artifact = self._artifacts.get(key.removeprefix(prefix), tenant=tenant)
            except NotFound:
                continue
            if any((f.sha256, f.size_bytes) == (file.sha256, file.size_bytes) for f in artifact.files):
                return True
        return False


def _mismatch(file: ArtifactFile, text: str) -> FailedPrecondition:
    return FailedPrecondition(f"{file.path} {text}.", reason="CONTENT_MISMATCH", metadata={"path": file.path})


def _no_such_upload(name: str) -> NotFound:
    return NotFound(f"There is no upload {name:.100}.", reason="UPLOAD_NOT_FOUND")


def _record_key(tenant: str, upload_id: str) -> str:
    return f"artifact-uploads/{tenant}/{upload_id}.json"


def _stage_key(tenant: str, upload_id: str, index: int) -> str:
    return f"artifact-uploads/{tenant}/{upload_id}/{index:06d}"
