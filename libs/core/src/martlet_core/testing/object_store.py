"""MemoryObjectStore: an ObjectStore without a server; it passes the same suite as the real one."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from martlet_core.backoff import never, stop_if
from martlet_core.errors import FailedPrecondition, NotFound


class MemoryObjectStore:
    """Objects in a dict. Thread-safe.

    Attributes:
        calls: how often each method was called, for tests that count what was sent.
        sent_bytes: bytes written by ``put``, ``put_if_absent`` and ``upload``.
        range_bytes: what ``download`` reads at a time.
    """

    range_bytes = 4 * 1024 * 1024

    def __init__(self, bucket: str = "memory") -> None:
        self.bucket = bucket
        self.calls: Counter[str] = Counter()
        self.sent_bytes = 0
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes:
        with self._lock:
            self.calls["get"] += 1
            if key not in self._objects:
                raise NotFound(f"There is no object {self.uri(key)}.", reason="OBJECT_NOT_FOUND")
            return self._objects[key]

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        with self._lock:
            self.calls["put"] += 1
            self.sent_bytes += len(data)
            self._objects[key] = bytes(data)

    def put_if_absent(self, key: str, data: bytes, *, content_type: str = "application/json") -> bool:
        with self._lock:
            self.calls["put_if_absent"] += 1
            if key in self._objects:
                return False
            self.sent_bytes += len(data)
            self._objects[key] = bytes(data)
            return True

    def upload(self, key: str, path: Path) -> None:
        data = path.read_bytes()
        with self._lock:
            self.calls["upload"] += 1
            self.sent_bytes += len(data)
            self._objects[key] = data

    def download(self, key: str, path: Path, size_bytes: int, *, give_up: Callable[[], bool] = never) -> str:
        if self.size(key) is None:
            raise NotFound(f"There is no object {self.uri(key)}.", reason="OBJECT_NOT_FOUND")
        digest = hashlib.sha256()
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        try:
            with temporary.open("xb") as file:
                for offset in range(0, size_bytes, self.range_bytes):
                    stop_if(give_up, f"downloading {key}")
                    length = min(self.range_bytes, size_bytes - offset)
                    data = self.get_range(key, offset, length)
                    if len(data) < length:
                        raise FailedPrecondition(
                            f"{self.uri(key)} has fewer than {size_bytes} bytes; it is damaged.",
                            reason="CONTENT_MISMATCH",
                        )
                    digest.update(data)
                    file.write(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest()

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Part of an object, as ``download`` asks for one after another; for tests to replace."""
        return self.get(key)[offset : offset + length]

    def open(self, key: str) -> BinaryIO:
        return io.BytesIO(self.get(key))

    def size(self, key: str) -> int | None:
        with self._lock:
            self.calls["size"] += 1
            data = self._objects.get(key)
            return None if data is None else len(data)

    def delete(self, key: str) -> None:
        with self._lock:
            self.calls["delete"] += 1
            self._objects.pop(key, None)

    def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        with self._lock:
            self.calls["list"] += 1
            keys = sorted(key for key in self._objects if key.startswith(prefix))
        return keys[bisect_right(keys, after) if after else 0 :][:limit]

    def presign_get(self, key: str, expires_seconds: int) -> str:
        return f"memory://{self.bucket}/{key}?method=GET&expires={expires_seconds}"

    def presign_put(self, key: str, expires_seconds: int) -> str:
        return f"memory://{self.bucket}/{key}?method=PUT&expires={expires_seconds}"

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"
