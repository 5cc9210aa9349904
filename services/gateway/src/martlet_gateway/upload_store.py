"""Uploads in parts: records and parts in the object store until they become a file.

uploads/<tenant>/<id>.json          the upload
uploads/<tenant>/<id>/<part id>     one part each
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from martlet_core.artifacts.collector import every_key
from martlet_core.artifacts.types import ObjectStore
from martlet_core.backoff import never
from martlet_core.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from martlet_core.ids import ID_PATTERN, new_id

PREFIX = "upload-"
PART_PREFIX = "part-"
_COMPLETION_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Upload:
    """An upload. ``status``: pending, completed, cancelled or expired; ``file`` is the file object once completed."""

    upload_id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int
    mime_type: str
    expires_after_seconds: int | None = None
    status: str = "pending"
    file: dict[str, Any] | None = None

    def has_expired(self, seconds_ago: float = 0.0) -> bool:
        """True for one that wasn't completed in its time, which ended so long ago, and doesn't say so yet."""
        return self.status == "pending" and self.expires_at + seconds_ago <= time.time()

    def to_openai(self) -> dict[str, Any]:
        """The ``upload`` object."""
        fields = {"filename", "purpose", "bytes", "created_at", "expires_at", "status", "file"}
        values = {name: value for name, value in asdict(self).items() if name in fields}
        return {"id": PREFIX + self.upload_id, "object": "upload", **values}


class UploadStore:
    """Uploads of all tenants. Methods block; routes call them in a thread.

    Args:
        objects: where they are kept.
        ttl_seconds: life of an upload that isn't completed.
        max_bytes: largest upload.
    """

    def __init__(self, objects: ObjectStore, *, ttl_seconds: float, max_bytes: int) -> None:
        self._objects = objects
        self._ttl_seconds = ttl_seconds
        self._max_bytes = max_bytes

    def create(
        self,
        tenant: str,
        *,
        filename: str,
        purpose: str,
        size_bytes: int,
        mime_type: str,
        expires_after_seconds: int | None,
    ) -> Upload:
        """Begin an upload."""
        if size_bytes > self._max_bytes:
            raise InvalidArgument.field("bytes", f"{size_bytes} is more than an upload may have: {self._max_bytes}.")
        now = int(time.time())
        expires = now + int(self._ttl_seconds)
        upload = Upload(new_id(), filename, purpose, size_bytes, now, expires, mime_type, expires_after_seconds)
        self._put(tenant, upload)
        return upload

    def get(self, tenant: str, upload_id: str) -> Upload:
        """An upload. NotFound if the tenant has none of that id; one whose time is over has status ``expired``."""
        bare = upload_id.removeprefix(PREFIX)
        usable = upload_id.startswith(PREFIX) and ID_PATTERN.fullmatch(bare)
        upload = self._read(_key(tenant, bare)) if usable else None
        if upload is None:
            message = f"No such Upload object: {upload_id:.100}"
            raise NotFound(message, reason="UPLOAD_NOT_FOUND", metadata={"param": "upload_id"})
        return self._end(tenant, upload, "expired") if upload.has_expired() else upload

    def pending(self, tenant: str, upload_id: str) -> Upload:
        """An upload that takes parts. FailedPrecondition if it is over."""
        upload = self.get(tenant, upload_id)
        if upload.status != "pending":
            raise FailedPrecondition(
                f"{upload_id} is {upload.status}; begin a new upload.", reason="UPLOAD_NOT_PENDING"
            )
        return upload

    def add_part(self, tenant: str, upload: Upload, path: Path, size_bytes: int) -> str:
        """Keep a part; returns its id."""
        stored = sum(size for _, size in self._parts(tenant, upload))
        if stored + size_bytes > upload.bytes:
            raise ResourceExhausted(
                f"With this part the upload would have {stored + size_bytes} bytes; {upload.bytes} were declared.",
                reason="PAYLOAD_TOO_LARGE",
                metadata={"param": "data"},
            )
        part = new_id()
        self._objects.upload(f"{_directory(tenant, upload.upload_id)}{part}", path)
        return PART_PREFIX + part

    def join(self, tenant: str, upload: Upload, part_ids: Sequence[str], md5: str | None, path: Path) -> str:
        """Write the parts in the given order to ``path``; returns the sha256 of the whole.

        Raises:
            InvalidArgument: an unknown part, fewer bytes than declared, or another MD5.
        """
        known = dict(self._parts(tenant, upload))
        total, sha256, md5_sum = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with open(path, "wb") as target:
            for index, part_id in enumerate(part_ids):
                part = part_id.removeprefix(PART_PREFIX)
                if not part_id.startswith(PART_PREFIX) or part not in known:
                    raise InvalidArgument.field(f"part_ids[{index}]", f"`{part_id:.60}` is not a part of this upload.")
                with self._objects.open(f"{_directory(tenant, upload.upload_id)}{part}") as source:
                    while chunk := source.read(1024 * 1024):
                        target.write(chunk)
                        sha256.update(chunk)
                        md5_sum.update(chunk)
                        total += len(chunk)
                        if total > upload.bytes:
                            raise InvalidArgument.field(
                                "part_ids", f"the parts have more than the {upload.bytes} bytes declared."
                            )
        if total != upload.bytes:
            raise InvalidArgument.field(
                "part_ids", f"the parts have {total} bytes together; {upload.bytes} were declared."
            )
        if md5 is not None and md5.lower() != md5_sum.hexdigest():
            raise InvalidArgument.field(
                "md5", f"the parts have MD5 {md5_sum.hexdigest()}, not {md5:.40}.", reason="CHECKSUM_MISMATCH"
            )
        return sha256.hexdigest()

    def complete(self, tenant: str, upload: Upload, file: dict[str, Any]) -> Upload:
        """The upload became a file."""
        return self._end(tenant, replace(upload, file=file), "completed")

    def cancel(self, tenant: str, upload: Upload) -> Upload:
        """Throw an upload away."""
        return self._end(tenant, upload, "cancelled")

    def sweep(self, *, give_up: Callable[[], bool] = never) -> int:
        """End the uploads of all tenants whose time was over a day ago, and delete their parts; returns how many.

        The day is for completions that are under way.
        """
        ended = 0
        for key in every_key(self._objects, "uploads/", give_up):
            _, tenant, *name = key.split("/")
            if len(name) > 1:
                continue  # a part
            upload = self._read(key)
            if upload is not None and upload.has_expired(_COMPLETION_SECONDS):
                self._end(tenant, upload, "expired")
                ended += 1
        return ended

    def _end(self, tenant: str, upload: Upload, status: str) -> Upload:
        ended = replace(upload, status=status)
        self._put(tenant, ended)
        for part, _ in self._parts(tenant, upload):
            self._objects.delete(f"{_directory(tenant, upload.upload_id)}{part}")
        return ended

    def _read(self, key: str) -> Upload | None:
        try:
            return Upload(**orjson.loads(self._objects.get(key)))
        except NotFound:
            return None

    def _parts(self, tenant: str, upload: Upload) -> list[tuple[str, int]]:
        directory = _directory(tenant, upload.upload_id)
        parts: list[tuple[str, int]] = []
        after = ""
        while keys := self._objects.list(directory, after=after, limit=1000):
            parts += [(key.removeprefix(directory), self._objects.size(key) or 0) for key in keys]
            after = keys[-1]
        return parts

    def _put(self, tenant: str, upload: Upload) -> None:
        self._objects.put(_key(tenant, upload.upload_id), orjson.dumps(asdict(upload)), content_type="application/json")


def _key(tenant: str, upload_id: str) -> str:
    return f"uploads/{tenant}/{upload_id}.json"


def _directory(tenant: str, upload_id: str) -> str:
    return f"uploads/{tenant}/{upload_id}/"
