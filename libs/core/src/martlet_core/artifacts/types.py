"""Artifacts and published models as values, and the interface of the stores that keep them.

Keys in the object store (one bucket):

    blobs/sha256/<hash>                content, shared by all artifacts that have it
    refs/<hash>/<artifact id>          says who needs a blob, so that deleting can find out
    locks/blobs/<hash>                 a blob is being deleted
    artifacts/<id>/manifest.json       what an artifact is; written last, by a conditional PUT, never changed
    tenants/<tenant>/artifacts/<inverted id>.<kind>    index for listing, newest first
    models/<quoted name>.json          a published model name -> artifact
    jobs/<id>/spec.json, final.json, events.jsonl
    wishes/<stage>/<job id>.<pause|cancel>    what was asked of a job that isn't over
    temporary/<job id>/<artifact id>   a model that a job has published for a while
    keys/<key hash>.json               API keys
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from martlet_core.backoff import never

#: Kinds by the names used in manifests; the proto enum is ``ARTIFACT_KIND_<UPPER>``.
ARTIFACT_KINDS = ("dataset", "adapter", "checkpoint", "model", "merged_model", "quantized_model", "report")
#: Those that hold a whole model, which an engine can be started with and a job can build on.
WHOLE_MODEL_KINDS = ("model", "merged_model", "quantized_model")


@dataclass(frozen=True)
class ArtifactFile:
    """A file of an artifact: relative path with forward slashes, sha256 in hex, size in bytes."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Artifact:
    """An immutable, content-addressed directory.

    Attributes:
        id: server-made; the resource name is ``artifacts/<id>``.
        kind: one of ``ARTIFACT_KINDS``.
        tenant: owner; every read on behalf of a client is checked against it.
        files: ordered by path.
        sha256: of the manifest.
        create_time: seconds since the epoch.
        metadata: facts about the content, JSON-ready, fixed at commit.
        source_job: id of the job that made it; empty for uploads.
        parents: ids of the artifacts it was made from.
    """

    id: str
    kind: str
    tenant: str
    files: Sequence[ArtifactFile]
    display_name: str = ""
    sha256: str = ""
    create_time: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source_job: str = ""
    parents: Sequence[str] = ()

    @property
    def size_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(f.size_bytes for f in self.files)


@dataclass(frozen=True)
class ArtifactPage:
    """A page of artifacts, newest first; ``next_page_token`` is empty at the end."""

    artifacts: Sequence[Artifact]
    next_page_token: str = ""


@dataclass(frozen=True)
class PublishedModel:
    """A name that answers in inference requests.

    Attributes:
        name: the name used in requests (``ft:smollm2-135m-instruct:acme:headlines:01ab``).
        kind: ``base``, ``adapter`` or ``whole``.
        tenant: owner; empty for models everyone may use.
        artifact_id: its files; empty for base models that are not artifacts.
        base_model: for adapters, the name of the model underneath.
        lora_rank: 0 for whole models.
        source_job: id of the job that made it.
        create_time: seconds since the epoch.
    """

    name: str
    kind: str
    tenant: str = ""
    artifact_id: str = ""
    base_model: str = ""
    lora_rank: int = 0
    source_job: str = ""
    create_time: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)


class ObjectStore(Protocol):
    """Plain objects by key. Thread-safe, not to be shared across processes. Raises NotFound, Unavailable."""

    def get(self, key: str) -> bytes:
        """The whole object; NotFound if there is none."""
        ...

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write or overwrite."""
        ...

    def put_if_absent(self, key: str, data: bytes, *, content_type: str = "application/json") -> bool:
        """Write unless the key exists (``If-None-Match: *``); False if it did. One of several racers gets True."""
        ...

    def upload(self, key: str, path: Path) -> None:
        """Write a file, in parts when it is large."""
        ...

    def download(self, key: str, path: Path, size_bytes: int, *, give_up: Callable[[], bool] = never) -> str:
        """Read into a file, in parallel ranges when it is large; atomic (temporary file, then rename). Returns the sha256 of
        what was written, in hex. GaveUp, and no file, once ``give_up()`` is true; it is looked at between ranges."""
        ...

    def open(self, key: str) -> BinaryIO:
        """Read as a stream; the caller closes it."""
        ...

    def size(self, key: str) -> int | None:
        """Size in bytes; None if there is no such key."""
        ...

    def delete(self, key: str) -> None:
        """Delete; no error if there is none."""
        ...

    def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """Keys with a prefix in order, behind ``after``."""
        ...

    def presign_get(self, key: str, expires_seconds: int) -> str:
        """URL for one GET."""
        ...

    def presign_put(self, key: str, expires_seconds: int) -> str:
        """URL for one PUT."""
        ...

    def uri(self, key: str) -> str:
        """``s3://bucket/key``."""
        ...


class ArtifactStore(Protocol):
    """Artifacts on top of an ObjectStore. Thread-safe. Raises NotFound, AlreadyExists, InvalidArgument, Unavailable,
    and FailedPrecondition with reason ``CONTENT_MISMATCH`` when bytes don't match their hash."""

    objects: ObjectStore

    def put_directory(
        self,
        directory: Path,
        *,
        kind: str,
        tenant: str,
        artifact_id: str | None = None,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        source_job: str = "",
        parents: Sequence[str] = (),
    ) -> Artifact:
        """Upload the files (those already stored are not sent again), then the manifest. With a given ``artifact_id``
        that exists already: AlreadyExists (a zombie lost the race) unless the content is the same."""
        ...

    def get(self, artifact_id: str, *, tenant: str | None = None) -> Artifact:
        """The artifact from its verified manifest. NotFound also if it belongs to another tenant (if one is given)."""
        ...

    def list(self, *, tenant: str, kind: str | None = None, page_size: int = 100, page_token: str = "") -> ArtifactPage:
        """Artifacts of a tenant, newest first; ``page_token`` may also be the id of the last one seen."""
        ...

    def download(self, artifact_id: str, directory: Path, *, give_up: Callable[[], bool] = never) -> Artifact:
        """Put the files into a directory, hard-linked from the local cache where possible (so: don't write to them).
        Every byte was checked against its sha256. GaveUp, with some of the files there, once ``give_up()`` is true."""
        ...

    def open_file(self, artifact: Artifact, path: str) -> Iterator[bytes]:
        """Chunks of one file; the last one is given only after the whole matched its sha256."""
        ...

    def delete(self, artifact_id: str, *, tenant: str | None = None) -> None:
        """Delete the manifest first, then this artifact's refs, then blobs that nothing refers to."""
        ...


class ModelRegistry(Protocol):
    """Published model names in the object store."""

    def publish(self, model: PublishedModel) -> PublishedModel:
        """Make a name known; the same again is fine, another artifact under the same name is AlreadyExists."""
        ...

    def get(self, name: str, *, tenant: str | None = None) -> PublishedModel:
        """Resolve a name. NotFound (with ``metadata["close_matches"]``, comma-separated) also if it belongs to
        another tenant."""
        ...

    def list(self, *, tenant: str) -> Sequence[PublishedModel]:
        """Models the tenant may use, newest first."""
        ...

    def delete(self, name: str, *, tenant: str) -> None:
        """Forget a name; its artifact stays."""
        ...
