"""Where things lie in the bucket, what may be a path, how a manifest is written. ``types.py`` has the overview."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from martlet_core.artifacts.types import ARTIFACT_KINDS, Artifact, ArtifactFile
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.ids import ID_PATTERN, NAME_PATTERN

SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")

_MAX_FILES = 100_000
_MAX_PATH_CHARS = 1024
_MANIFEST_VERSION = 1
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_INVERTED = str.maketrans(_ALPHABET, _ALPHABET[::-1])


def blob_key(sha256: str) -> str:
    """Key of a content."""
    return f"blobs/sha256/{sha256}"


def ref_key(sha256: str, artifact_id: str) -> str:
    """Key that says that an artifact needs a content."""
    return f"refs/{sha256}/{artifact_id}"


def lock_key(sha256: str) -> str:
    """Key that exists while a content is being reclaimed."""
    return f"locks/blobs/{sha256}"


def manifest_key(artifact_id: str) -> str:
    """Key of an artifact's manifest."""
    return f"artifacts/{artifact_id}/manifest.json"


def index_prefix(tenant: str) -> str:
    """Prefix of a tenant's index."""
    return f"tenants/{tenant}/artifacts/"


def index_key(tenant: str, artifact_id: str, kind: str) -> str:
    """Key in a tenant's index.

    A store lists keys in ascending order only, so the id is inverted digit by digit: ids sort by creation, inverted
    ones newest first. The kind is in the key, so that filtering reads no manifest.
    """
    return f"{index_prefix(tenant)}{artifact_id.translate(_INVERTED)}.{kind}"


def index_after(tenant: str, artifact_id: str) -> str:
    """Position just behind an artifact in its tenant's index."""
    return f"{index_prefix(tenant)}{artifact_id.translate(_INVERTED)}.~"


def parse_index_key(key: str) -> tuple[str, str]:
    """Artifact id and kind of an index key."""
    inverted, _, kind = key.rsplit("/", 1)[1].partition(".")
    return inverted.translate(_INVERTED), kind


def check_path(path: str, field: str = "path") -> str:
    """Return a file's path if it is safe: relative, forward slashes, components of letters, digits and ``._-``.

    Raises:
        InvalidArgument: it isn't.
    """
    components = path.split("/")
    if len(path) <= _MAX_PATH_CHARS and all(NAME_PATTERN.fullmatch(c) and c not in (".", "..") for c in components):
        return path
    raise InvalidArgument.field(
        field,
        f"{path[:200]!r} is not a usable path: it must be relative, of at most {_MAX_PATH_CHARS} characters, with "
        "components of A-Z a-z 0-9 . _ - (1 to 128 of them, not . or ..). Rename the file.",
        reason="INVALID_PATH",
    )


def check_identity(artifact_id: str, kind: str, tenant: str) -> None:
    """InvalidArgument unless id, kind and tenant are usable in keys."""
    if not ID_PATTERN.fullmatch(artifact_id):
        raise InvalidArgument.field("artifact_id", f"{artifact_id[:100]!r} doesn't match {ID_PATTERN.pattern}.")
    if kind not in ARTIFACT_KINDS:
        raise InvalidArgument.field("kind", f"{kind[:100]!r} is none of {', '.join(ARTIFACT_KINDS)}.")
    if not NAME_PATTERN.fullmatch(tenant) or tenant in (".", ".."):
        raise InvalidArgument.field("tenant", f"{tenant[:100]!r} doesn't match {NAME_PATTERN.pattern}.")


def check_files(files: Sequence[ArtifactFile]) -> list[ArtifactFile]:
    """The files by path; InvalidArgument if there is none, one twice, or one with a bad path or hash."""
    if not 1 <= len(files) <= _MAX_FILES:
        raise InvalidArgument.field("files", f"An artifact has 1 to {_MAX_FILES} files, not {len(files)}.")
    seen: set[str] = set()
    for index, file in enumerate(files):
        check_path(file.path, f"files[{index}].path")
        if file.path in seen:
            raise InvalidArgument.field(f"files[{index}].path", f"{file.path!r} is there twice.")
        if not SHA256_PATTERN.fullmatch(file.sha256):
            raise InvalidArgument.field(f"files[{index}].sha256", "must be 64 lower-case hex digits.")
        if file.size_bytes < 0:
            raise InvalidArgument.field(f"files[{index}].size_bytes", "must not be negative.")
        seen.add(file.path)
    return sorted(files, key=lambda file: file.path)


def files_in(directory: Path) -> dict[str, Path]:
    """The regular files under a directory by relative path; directories without files are left out.

    Raises:
        InvalidArgument: nothing there, a symbolic link or another special file, or an unusable name.
    """
    if not directory.is_dir():
        raise InvalidArgument.field("directory", f"{directory} is not a directory.")
    found: dict[str, Path] = {}
    for path in sorted(directory.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        relative = path.relative_to(directory).as_posix()
        if not stat.S_ISREG(mode):
            raise InvalidArgument.field(
                relative,
                "is a symbolic link or a special file; copy the content into the directory.",
                reason="INVALID_PATH",
            )
        found[check_path(relative, relative)] = path
    if not found:
        raise InvalidArgument.field("directory", f"{directory} holds no files.")
    return found


def encode_manifest(artifact: Artifact) -> tuple[bytes, str]:
    """The manifest and its sha256.

    The digest covers the canonical JSON of everything else and stands inside, so that a damaged manifest is noticed.
    """
    body: dict[str, Any] = {
        "version": _MANIFEST_VERSION,
        "id": artifact.id,
        "kind": artifact.kind,
        "tenant": artifact.tenant,
        "display_name": artifact.display_name,
        "create_time": artifact.create_time,
        "labels": dict(artifact.labels),
        "metadata": dict(artifact.metadata),
        "source_job": artifact.source_job,
        "parents": list(artifact.parents),
        "files": [{"path": f.path, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in artifact.files],
    }
    try:
        digest = _digest(body)
    except (TypeError, ValueError) as error:
        raise InvalidArgument.field("metadata", f"must be JSON-ready: {error}.") from error
    return json.dumps({**body, "sha256": digest}, indent=1, ensure_ascii=False).encode(), digest


def decode_manifest(data: bytes, artifact_id: str) -> Artifact:
    """The artifact that a manifest describes.

    Raises:
        FailedPrecondition: reason ``CONTENT_MISMATCH``: it is damaged, or another artifact's.
    """
    try:
        body = json.loads(data)
        digest = body.pop("sha256")
        if _digest(body) != digest or body["id"] != artifact_id or body["version"] != _MANIFEST_VERSION:
            raise ValueError("digest, id or version differ")
        return _artifact(body, digest)
    except (ValueError, KeyError, TypeError, AttributeError, InvalidArgument) as error:
        raise FailedPrecondition(
            f"The manifest of artifacts/{artifact_id} is damaged: {error}.", reason="CONTENT_MISMATCH"
        ) from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _artifact(body: Mapping[str, Any], digest: str) -> Artifact:
    files = [ArtifactFile(f["path"], f["sha256"], f["size_bytes"]) for f in body["files"]]
    return Artifact(
        id=body["id"],
        kind=body["kind"],
        tenant=body["tenant"],
        files=tuple(check_files(files)),
        display_name=body["display_name"],
        sha256=digest,
        create_time=body["create_time"],
        labels=body["labels"],
        metadata=body["metadata"],
        source_job=body["source_job"],
        parents=tuple(body["parents"]),
    )


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
