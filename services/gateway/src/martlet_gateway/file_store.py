"""Files of the OpenAI surface: an artifact for the bytes, and a small record beside it for what may change.

The id is the artifact's: ``file-<artifact id>``. Records lie at ``files/<tenant>/<artifact id>.json``; artifacts that
came another way (metrics of a job, a data set committed over gRPC) are files too, without a record.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from martlet_core.artifacts.collector import every_key
from martlet_core.artifacts.types import Artifact
from martlet_core.backoff import never
from martlet_core.errors import NotFound
from martlet_core.ids import ID_PATTERN
from martlet_core.stores import Stores

PREFIX = "file-"
#: Kinds of artifact that are files without a record, and the purpose they are shown with.
_PURPOSES = {"dataset": "fine-tune", "report": "fine-tune-results"}
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class StoredFile:
    """A file.

    Attributes:
        artifact_id: the artifact with its bytes.
        path: its name within the artifact.
        created_at: seconds since the epoch.
        expires_at: when it goes; None for never.
        status: ``processed``, or ``error`` for a data set with rows that can't be read.
        status_details: which rows and why; None when there is nothing to say.
    """

    artifact_id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    path: str
    expires_at: int | None = None
    status: str = "processed"
    status_details: str | None = None

    @property
    def id(self) -> str:
        """``file-<artifact id>``."""
        return PREFIX + self.artifact_id

    @property
    def has_expired(self) -> bool:
        """True once its time is over: nobody sees it any more, and ``FileStore.sweep`` will delete it."""
        return self.expires_at is not None and self.expires_at <= time.time()

    def to_openai(self) -> dict[str, Any]:
        """The ``file`` object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": self.status,
            "status_details": self.status_details,
            "martlet": {"artifact": f"artifacts/{self.artifact_id}"},
        }


class FileStore:
    """Files on top of the artifact store. Methods block; routes call them in a thread.

    Args:
        stores: artifacts, objects and jobs.
        scratch: directory on the file system where uploads are taken in, so that files move there without being copied.
    """

    def __init__(self, stores: Stores, scratch: Path) -> None:
        self._artifacts = stores.artifacts
        self._objects = stores.objects
        self._scratch = scratch

    def create(
        self,
        tenant: str,
        path: Path,
        *,
        filename: str,
        purpose: str,
        expires_after_seconds: int | None = None,
        status: str = "processed",
        status_details: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> StoredFile:
        """Store a file that lies at ``path``; the path stays as it is."""
        name = _safe_name(filename)
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch, prefix="file-") as directory:
            os.link(path, Path(directory, name))
            artifact = self._artifacts.put_directory(
                Path(directory),
                kind="dataset",
                tenant=tenant,
                display_name=filename[:128],
                metadata={"filename": filename, "purpose": purpose, **(metadata or {})},
            )
        created = int(artifact.create_time)
        stored = StoredFile(
            artifact_id=artifact.id,
            filename=filename,
            purpose=purpose,
            bytes=artifact.size_bytes,
            created_at=created,
            path=name,
            expires_at=created + expires_after_seconds if expires_after_seconds else None,
            status=status,
            status_details=status_details,
        )
        self._objects.put(_key(tenant, artifact.id), orjson.dumps(asdict(stored)), content_type="application/json")
        return stored

    def get(self, tenant: str, file_id: str) -> StoredFile:
        """A file of the tenant. NotFound if there is none, it is another tenant's, or it has expired."""
        artifact_id = artifact_id_of(file_id)
        stored = self._record(tenant, artifact_id) or self._bare(tenant, artifact_id)
        if stored is None:
            raise no_such_file(file_id)
        if stored.has_expired:
            raise no_such_file(file_id)
        return stored

    def content(self, tenant: str, stored: StoredFile) -> Iterator[bytes]:
        """The bytes in chunks."""
        artifact = self._artifacts.get(stored.artifact_id, tenant=tenant)
        return iter(self._artifacts.open_file(artifact, stored.path))

    def delete(self, tenant: str, file_id: str) -> None:
        """Delete a file with its bytes. NotFound as for ``get``."""
        self._delete(tenant, self.get(tenant, file_id).artifact_id)

    def list(
        self, tenant: str, *, after: str | None, limit: int, descending: bool, purpose: str | None
    ) -> tuple[list[StoredFile], bool]:
        """A page of files by age, and whether there are more."""
        border = artifact_id_of(after) if after else None
        ids = sorted(set(self._ids(tenant)), reverse=descending)
        found: list[StoredFile] = []
        for artifact_id in ids:
            if border is not None and (artifact_id >= border if descending else artifact_id <= border):
                continue
            try:
                stored = self.get(tenant, PREFIX + artifact_id)
            except NotFound:
                continue  # it expired, or went between the listing and this look
            if purpose is not None and stored.purpose != purpose:
                continue
            if len(found) == limit:
                return found, True
            found.append(stored)
        return found, False

    def sweep(self, in_use: str, *, give_up: Callable[[], bool] = never) -> int:
        """Delete expired files of all tenants with their bytes; returns how many.

        Args:
            in_use: text that names the artifacts that a job still needs: they stay until it is over.
            give_up: looked at between files; GaveUp once it is true.
        """
        deleted = 0
        for key in every_key(self._objects, "files/", give_up):
            _, tenant, name = key.split("/")
            artifact_id = name.removesuffix(".json")
            stored = self._record(tenant, artifact_id)
            if stored is not None and stored.has_expired and artifact_id not in in_use:
                self._delete(tenant, artifact_id)
                deleted += 1
        return deleted

    def _ids(self, tenant: str) -> Iterator[str]:
        prefix, after = f"files/{tenant}/", ""
        while keys := self._objects.list(prefix, after=after, limit=1000):
            for key in keys:
                yield key.removeprefix(prefix).removesuffix(".json")
            after = keys[-1]
        token = ""
        while True:
            page = self._artifacts.list(tenant=tenant, kind="report", page_size=1000, page_token=token)
            yield from (artifact.id for artifact in page.artifacts)
            token = page.next_page_token
            if not token:
                return

    def _record(self, tenant: str, artifact_id: str) -> StoredFile | None:
        try:
            return StoredFile(**orjson.loads(self._objects.get(_key(tenant, artifact_id))))
        except NotFound:
            return None

    def _bare(self, tenant: str, artifact_id: str) -> StoredFile | None:
        """A file for an artifact without a record."""
        try:
            artifact = self._artifacts.get(artifact_id, tenant=tenant)
        except NotFound:
            return None
        purpose = _PURPOSES.get(artifact.kind)
        if purpose is None or not artifact.files:
            return None
        file = _main_file(artifact)
        return StoredFile(
            artifact_id=artifact.id,
            filename=Path(file.path).name,
            purpose=purpose,
            bytes=file.size_bytes,
            created_at=int(artifact.create_time),
            path=file.path,
        )

    def _delete(self, tenant: str, artifact_id: str) -> None:
        self._objects.delete(_key(tenant, artifact_id))
        try:
            self._artifacts.delete(artifact_id, tenant=tenant)
        except NotFound:
            return  # someone else deleted it at the same moment


def artifact_id_of(file_id: str, param: str = "id") -> str:
    """``file-<artifact id>`` -> artifact id. NotFound for anything else: such a file can't exist."""
    artifact_id = file_id.removeprefix(PREFIX)
    if not file_id.startswith(PREFIX) or not ID_PATTERN.fullmatch(artifact_id):
        raise no_such_file(file_id, param)
    return artifact_id


def no_such_file(file_id: str, param: str = "id") -> NotFound:
    """The one answer for files that don't exist and files of other tenants."""
    return NotFound(f"No such File object: {file_id:.100}", reason="FILE_NOT_FOUND", metadata={"param": param})


def _main_file(artifact: Artifact) -> Any:
    tables = [f for f in artifact.files if f.path.endswith(".csv")]
    return tables[0] if tables else artifact.files[0]


def _safe_name(filename: str) -> str:
    """A name that artifacts take; people keep seeing the file's own name, which the record has."""
    name = _UNSAFE.sub("_", Path(filename.replace("\\", "/")).name)
    stem, dot, suffix = name.rpartition(".")
    name = name if len(name) <= 100 else f"{stem[:80]}{dot}{suffix[-16:]}"
    return name if name.strip(".") else "data"


def _key(tenant: str, artifact_id: str) -> str:
    return f"files/{tenant}/{artifact_id}.json"
