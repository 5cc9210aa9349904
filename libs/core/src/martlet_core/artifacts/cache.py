"""A local cache of contents, shared by the processes of a machine, from which files are hard-linked."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from martlet_core.artifacts.layout import sha256_of
from martlet_core.errors import FailedPrecondition

log = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 64 * 1024**3

# A verified entry gets this modification time (2001-09-09T01:46:40Z). Whoever writes to it, also through a hard link,
# changes the time, and the entry is hashed again before its next use; so an untouched one needs no second hashing.
_VERIFIED_NS = 1_000_000_000 * 1_000_000_000
_ABANDONED_SECONDS = 86_400.0
_RESCAN_EVERY = 256


class BlobCache:
    """Contents by sha256 in a directory, bounded in size, least recently used out first.

    Args:
        directory: made if missing; on the file system that the files will be linked to.
        max_bytes: bound of the sum of sizes; a single larger content still goes in and pushes out the rest.
    """

    def __init__(self, directory: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self._locks = [threading.Lock() for _ in range(64)]
        self._size_lock = threading.Lock()
        self._estimate_bytes = 0
        self._insertions = 0
        directory.mkdir(parents=True, exist_ok=True)

    def place(self, sha256: str, size_bytes: int, target: Path, fetch: Callable[[Path], str]) -> None:
        """Put a content at ``target``, replacing what is there: a hard link, or a copy where linking isn't possible.

        Args:
            sha256: of the content, in hex.
            size_bytes: of the content.
            target: where it shall be; its directory exists.
            fetch: writes the content to the path it is given and returns its sha256; called when the cache hasn't got it.

        Raises:
            FailedPrecondition: reason ``CONTENT_MISMATCH``: twice, what was fetched had another hash.
        """
        entry = self.directory / sha256
        with self._locks[int(sha256[:8], 16) % len(self._locks)]:
            while True:
                if not self._is_sound(entry, sha256, size_bytes):
                    self._insert(entry, sha256, size_bytes, fetch)
                try:
                    _link(entry, target)
                    return
                except FileNotFoundError:
                    if not target.parent.is_dir():
                        raise
                    # evicted in between: fetch it again

    def __contains__(self, sha256: str) -> bool:
        return (self.directory / sha256).is_file()

    def _is_sound(self, entry: Path, sha256: str, size_bytes: int) -> bool:
        try:
            status = entry.stat()
            if status.st_size == size_bytes and status.st_mtime_ns != _VERIFIED_NS and sha256_of(entry) != sha256:
                log.warning("cache entry %s was changed; fetching it again", sha256)
                entry.unlink()
                return False
            if status.st_size != size_bytes:
                entry.unlink()
                return False
            os.utime(entry, ns=(time.time_ns(), _VERIFIED_NS))  # the access time orders eviction
        except FileNotFoundError:
            return False
        return True

    def _insert(self, entry: Path, sha256: str, size_bytes: int, fetch: Callable[[Path], str]) -> None:
        temporary = self.directory / f"{sha256}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            for last in (False, True):
                if fetch(temporary) == sha256:
                    break
                if last:
                    raise FailedPrecondition(
                        f"The stored content {sha256} has another hash than its name says; it is damaged. "
                        "Restore it, or make the artifact again.",
                        reason="CONTENT_MISMATCH",
                        metadata={"sha256": sha256},
                    )
                log.warning("content %s arrived damaged; fetching it again", sha256)
            os.chmod(temporary, 0o444)
            os.replace(temporary, entry)
            with suppress(FileNotFoundError):  # evicted already; ``place`` notices
                # Not before the rename: the temporary file would look abandoned.
                os.utime(entry, ns=(time.time_ns(), _VERIFIED_NS))
        finally:
            temporary.unlink(missing_ok=True)
        self._keep_bounded(size_bytes)

    def _keep_bounded(self, added_bytes: int) -> None:
        with self._size_lock:
            self._estimate_bytes += added_bytes
            self._insertions += 1
            # Other processes insert too, so the directory itself is looked at now and then.
            if self._estimate_bytes > self.max_bytes or self._insertions % _RESCAN_EVERY == 1:
                self._estimate_bytes = self._evict()

    def _evict(self) -> int:
        entries: list[tuple[int, int, Path]] = []
        now = time.time()
        for item in os.scandir(self.directory):
            try:
                status = item.stat()
                if item.name.endswith(".tmp"):
                    if now - status.st_mtime > _ABANDONED_SECONDS:  # its process was killed
                        os.unlink(item.path)
                else:
                    entries.append((status.st_atime_ns, status.st_size, Path(item.path)))
            except FileNotFoundError:
                continue
        total = sum(size for _, size, _ in entries)
        entries.sort(key=lambda entry: entry[0])
        for _, size, path in entries[:-1]:  # the newest stays: it is about to be linked
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total


def _link(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            os.link(source, temporary)
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or too many links
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)  # if both are links to one file, this does nothing and the temporary one stays
    finally:
        temporary.unlink(missing_ok=True)
