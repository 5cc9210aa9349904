"""Models of the artifact store on the local disk: one directory each, bounded in size, least recently used out first.

The files are hard links to the store's own cache of blobs, so what that one lets go of stays on the disk as long as a
model here has it: both have the same bound, and together they take twice as much at most.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from martlet_core.artifacts.types import ArtifactStore
from martlet_core.errors import FailedPrecondition

log = logging.getLogger(__name__)

#: Replicas of one machine that may share a cache directory.
_MOST_PROCESSES = 64
_LOCK_FILE = ".lock"


@dataclass
class _Entry:
    """A model on the disk: its size in bytes, and when it was last asked for in nanoseconds since the epoch."""

    size_bytes: int
    last_used: int


class ModelCache:
    """The models of one process. Its coroutines belong to one event loop.

    Each process has a directory of its own: another one could not know what this one's engine reads. The first takes
    ``directory`` itself, those beside it ``directory-1`` and so on; a restarted process finds its models again.

    Args:
        directory: made if missing.
        max_bytes: bound of the sum of the models' sizes. A larger model still goes in, and models in use stay.

    Raises:
        FailedPrecondition: too many processes share the directory.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory, self._lock = _claim(directory.resolve())
        self._max_bytes = max_bytes
        self._in_use: Callable[[], Collection[str]] = tuple
        self._downloads: dict[str, asyncio.Task[Path]] = {}
        self._entries = _read_entries(self.directory)

    def guard(self, in_use: Callable[[], Collection[str]]) -> None:
        """See ``ModelSource.guard``."""
        self._in_use = in_use

    async def files(self, artifact_id: str, artifacts: ArtifactStore) -> Path:
        """The directory with an artifact's files, downloaded if they aren't there; room is made for it first."""
        target = self.directory / artifact_id
        entry = self._entries.get(artifact_id)
        if entry is not None and target.is_dir():
            entry.last_used = time.time_ns()
            os.utime(target)  # for the next process
            return target
        task = self._downloads.get(artifact_id)
        if task is None:
            task = asyncio.create_task(self._fetch(artifact_id, target, artifacts), name=f"download {artifact_id}")
            self._downloads[artifact_id] = task
            task.add_done_callback(lambda done: self._ended(artifact_id, done))
        return await asyncio.shield(task)  # who gives up waiting doesn't take the download from the others

    def close(self) -> None:
        """Let another process have the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _ended(self, artifact_id: str, task: asyncio.Task[Path]) -> None:
        self._downloads.pop(artifact_id, None)
        if not task.cancelled():
            task.exception()  # those who wait for it have it too

    async def _fetch(self, artifact_id: str, target: Path, artifacts: ArtifactStore) -> Path:
        size_bytes = (await asyncio.to_thread(artifacts.get, artifact_id)).size_bytes
        self._entries[artifact_id] = _Entry(size_bytes, time.time_ns())  # counts from now on
        try:
            await self._make_room()
            await asyncio.to_thread(_download, artifact_id, target, artifacts)
        except BaseException:
            del self._entries[artifact_id]
            raise
        return target

    async def _make_room(self) -> None:
        """Remove the models that were unused for longest until the rest fits."""
        kept = {*self._in_use(), *self._downloads}
        idle = sorted(self._entries.keys() - kept, key=lambda name: self._entries[name].last_used)
        total = sum(entry.size_bytes for entry in self._entries.values())
        removed: list[Path] = []
        for artifact_id in idle:
            if total <= self._max_bytes:
                break
            total -= self._entries.pop(artifact_id).size_bytes
            # Gone by name at once, so that nobody is given it any more; its files may take a while.
            doomed = self.directory / f".{artifact_id}.removed-{time.time_ns()}"
            with suppress(FileNotFoundError):  # someone else removed it
                (self.directory / artifact_id).rename(doomed)
                removed.append(doomed)
            log.info("model removed from the disk", extra={"artifact": artifact_id})
        if total > self._max_bytes:
            log.warning(
                "the models in use are larger than the cache may be", extra={"bytes": total, "bound": self._max_bytes}
            )
        for directory in removed:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def _download(artifact_id: str, target: Path, artifacts: ArtifactStore) -> None:
    partial = target.with_name(f".{artifact_id}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        artifacts.download(artifact_id, partial)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _claim(directory: Path) -> tuple[Path, int]:
    """The first of the directories that no other process holds, and the descriptor that holds it."""
    for number in range(_MOST_PROCESSES):
        place = directory.with_name(f"{directory.name}-{number}") if number else directory
        place.mkdir(parents=True, exist_ok=True)
        lock = os.open(place / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return place, lock
    raise FailedPrecondition(
        f"{_MOST_PROCESSES} replicas use {directory}; give this one another MARTLET_CACHE_DIR.", reason="CACHE_IN_USE"
    )


def _read_entries(directory: Path) -> dict[str, _Entry]:
    """The models that are there. What a killed process left half-way is removed."""
    entries = {}
    for path in directory.iterdir():
        if not path.is_dir():
            continue
        if path.name.startswith("."):
            log.info("leftover removed", extra={"path": str(path)})
            shutil.rmtree(path, ignore_errors=True)
            continue
        size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        entries[path.name] = _Entry(size_bytes, path.stat().st_mtime_ns)
    return entries
