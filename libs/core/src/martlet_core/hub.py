"""Models and data sets of hubs: Hugging Face (``org/name``, ``hf:org/name``) and ModelScope (``ms:org/name``).

A snapshot is downloaded once and then only read. Only what the caller names is fetched (weights as safetensors, rows as JSONL or Parquet):
code and pickles never come onto the machine. Hugging Face by its own library, where an environment has it; ModelScope by plain HTTP
(``/api/v1/{models,datasets}/{id}/repo``), since its package brings far more than this needs. Tokens and addresses are the
hubs' own variables: ``HF_TOKEN``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``; ``MODELSCOPE_API_TOKEN``, ``MODELSCOPE_ENDPOINT``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from martlet_core.errors import FailedPrecondition, MartletError, NotFound, Unavailable
from martlet_core.model_rules import TEMPLATE_FILE, Hub, HubModel, parse_hub_id

#: Weights, configuration and tokenizer.
MODEL_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja")
#: Rows.
DATASET_PATTERNS = ("*.jsonl", "*.parquet")

_RETRY_SECONDS = 30.0
_TIMEOUT_SECONDS = 60.0
_CHUNK_BYTES = 1 << 20
_NAMES = {"hf": "Hugging Face", "ms": "ModelScope"}


def snapshot(name: str, cache_dir: Path, kind: Literal["model", "dataset"] = "model") -> Path:
    """The directory of what a hub id names, downloaded at most once.

    Args:
        name: ``[hf:|ms:]org/name[@revision]``.
        cache_dir: where snapshots lie.
        kind: what the hub has under that name, and so which files come.

    Raises:
        NotFound: the hub has no such repository or revision, or doesn't let us read it.
        FailedPrecondition: it has none of the files that are wanted.
        Unavailable: it isn't in the cache and the hub can't be reached.
    """
    wanted = parse_hub_id(name)
    if wanted is None:
        raise ValueError(f"{name!r} is no hub id")
    patterns = MODEL_PATTERNS if kind == "model" else DATASET_PATTERNS
    fetch = _from_modelscope if wanted.hub == "ms" else _from_hugging_face
    directory = fetch(name, wanted, cache_dir, kind, patterns)
    needed = ("*.safetensors",) if kind == "model" else DATASET_PATTERNS
    if not any(_matches(path.name, needed) for path in directory.rglob("*")):
        raise FailedPrecondition(
            f"{name!r} has no {' or '.join(needed)}; other formats of {'weights' if kind == 'model' else 'rows'} are never fetched"
            f"{' (a pickle can run code)' if kind == 'model' else ''}. Convert it, and upload the result as an artifact.",
            reason="HUB_FORMAT_REFUSED",
        )
    return directory


def with_template(directory: Path, template: str, target: Path) -> Path:
    """A directory of links to a model's files, but with another chat template; made at most once.

    Args:
        directory: the model, which stays as it is.
        template: Jinja.
        target: where to; its parent may be missing.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
    for entry in directory.iterdir():
        if entry.name != TEMPLATE_FILE:
            (partial / entry.name).symlink_to(entry.resolve())
    (partial / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    partial.chmod(0o755)
    try:
        partial.rename(target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not target.is_dir():  # else another process was faster
            raise
    return target


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def _not_found(name: str, hub: Hub) -> NotFound:
    variable = "HF_TOKEN" if hub == "hf" else "MODELSCOPE_API_TOKEN"
    return NotFound(
        f"{_NAMES[hub]} has no {name!r} that may be read from here; a gated or private one needs {variable} in the service's environment.",
        reason="HUB_MODEL_NOT_FOUND",
        metadata={"model": name},
    )


def _unreachable(name: str, hub: Hub, error: Exception) -> Unavailable:
    address = "HF_ENDPOINT" if hub == "hf" else "MODELSCOPE_ENDPOINT"
    return Unavailable(
        f"{name!r} is not in the cache and {_NAMES[hub]} can't be reached ({type(error).__name__}). Let the service reach it "
        f"(HTTPS_PROXY, {address}), or upload the files as an artifact and name artifacts/<id>.",
        reason="HUB_UNREACHABLE",
        retry_after_seconds=_RETRY_SECONDS,
    )


def _from_hugging_face(name: str, wanted: HubModel, cache_dir: Path, kind: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download  # pyright: ignore[reportMissingImports]  # heavy, and not in every environment
    from huggingface_hub.errors import (  # pyright: ignore[reportMissingImports]
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                wanted.repository,
                repo_type=kind,
                revision=wanted.revision or None,
                cache_dir=cache_dir / "hub",
                allow_patterns=list(patterns),
                endpoint=os.environ.get("HF_ENDPOINT") or None,
            )
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise _not_found(name, "hf") from error
    except (HfHubHTTPError, OSError) as error:  # its "not in the cache" is an OSError too
        raise _unreachable(name, "hf", error) from error


def _from_modelscope(name: str, wanted: HubModel, cache_dir: Path, kind: str, patterns: Sequence[str]) -> Path:
    revision = wanted.revision or "master"
    parent = cache_dir / "modelscope" / f"{kind}s" / wanted.repository.replace("/", "--")
    directory = parent / urllib.parse.quote(revision, safe="")
    if directory.is_dir():
        return directory
    parent.mkdir(parents=True, exist_ok=True)
    with _locked(parent / f".{directory.name}.lock"):
        if directory.is_dir():
            return directory
        partial = Path(tempfile.mkdtemp(prefix=".", dir=parent))
        try:
            _ModelScope(name, wanted.repository, revision, kind).download(partial, patterns)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return directory


class _ModelScope:
    """One repository of ModelScope at one revision, over its HTTP API."""

    def __init__(self, name: str, repository: str, revision: str, kind: str) -> None:
        endpoint = os.environ.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn"
        self._name = name
        self._base = f"{endpoint.rstrip('/')}/api/v1/{kind}s/{repository}/repo"
        self._revision = revision

    def download(self, directory: Path, patterns: Sequence[str]) -> None:
        """Bring the files that match; each is checked against the size and hash that the hub lists."""
        for file in self._files():
            path = str(file["Path"])
            if file.get("Type") != "tree" and _matches(path, patterns):
                self._fetch(path, file, _inside(directory, path))

    def _files(self) -> list[dict[str, Any]]:
        with self._open("/files", {"Revision": self._revision, "Recursive": "True"}) as response:
            answer = json.load(response)
        if answer.get("Code") != 200:
            raise _not_found(self._name, "ms")
        return list(answer["Data"]["Files"])

    def _fetch(self, path: str, listed: dict[str, Any], target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with (
            self._open("", {"Revision": self._revision, "FilePath": path}) as response,
            target.open("wb") as file,
        ):
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        wanted = listed.get("Sha256")
        if size != listed.get("Size", size) or (wanted and digest.hexdigest() != wanted):
            raise FailedPrecondition(
                f"{path} of {self._name!r} is not what ModelScope lists ({size} bytes came).", reason="CONTENT_MISMATCH"
            )

    @contextmanager
    def _open(self, path: str, query: dict[str, str]) -> Iterator[Any]:
        request = urllib.request.Request(f"{self._base}{path}?{urllib.parse.urlencode(query)}")
        if token := os.environ.get("MODELSCOPE_API_TOKEN"):
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
                yield response
        except MartletError:
            raise
        except urllib.error.HTTPError as error:
            if error.code in (401, 403, 404):
                raise _not_found(self._name, "ms") from error
            raise _unreachable(self._name, "ms", error) from error
        except OSError as error:
            raise _unreachable(self._name, "ms", error) from error


def _inside(directory: Path, path: str) -> Path:
    """FailedPrecondition unless the path stays in the directory: the hub's list is not ours."""
    target = directory / path
    if not target.resolve().is_relative_to(directory.resolve()):
        raise FailedPrecondition(f"ModelScope lists a file {path!r} outside of the repository.", reason="INVALID_PATH")
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
